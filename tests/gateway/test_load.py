"""A short run of the benchmark, and the client in an environment that has nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gateway
REPOSITORY = Path(__file__).parents[2]


def test_twenty_users_and_a_large_upload_meet_no_error(tmp_path):
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "bench_gateway.py"), "--users", "20", "--seconds", "6"]
    done = subprocess.run([*command, "--upload-mib", "256"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["errors"] == 0, done.stdout
    assert found["upload_growth_mb"] < 30
    # latencies are for a quiet machine: these are far above the goals
    assert found["read_p95"] < 20_000
    assert found["list_of_10000"] < 1000


def test_idle_connections_outlive_those_of_a_proxy(monkeypatch, tmp_path):
    from bhive_mltf.gateway import __main__ as program

    asked = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **options: asked.update(options))
    monkeypatch.setattr("bhive_mltf.gateway.app.make", lambda settings: None)
    monkeypatch.setattr("bhive_mltf.gateway.settings.load", lambda path: None)
    assert program.main(["serve", "--port", "8123"]) == 0
    assert (asked["host"], asked["port"]) == ("127.0.0.1", 8123)
    assert asked["timeout_keep_alive"] > 60


VERBS = {
    ("whoami",): 1,
    ("profiles",): 1,
    ("submit", "--profile", "lab"): 1,
    ("jobs",): 1,
    ("show", "j1"): 1,
    ("cancel", "j1"): 1,
    ("logs", "j1"): 1,
    ("logs", "-f", "j1"): 1,
    ("token",): 1,
    ("logout",): 0,
    ("login", "http://127.0.0.1:1"): 1,
    ("login", "gateway.example"): 1,
}


def test_every_verb_of_the_client_has_a_row():
    from bhive_mltf_client import main

    verbs = next(one.choices for one in main._parser()._actions if one.choices and "login" in one.choices)
    assert {row[0] for row in VERBS} == set(verbs)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """The client's program in an environment that has its wheels and nothing else."""
    folder = tmp_path_factory.mktemp("client")
    source = shutil.copytree(
        REPOSITORY / "client", folder / "source", ignore=shutil.ignore_patterns("*.egg-info", "build")
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "wheel", "--no-build-isolation", "--wheel-dir", str(folder / "wheels"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    wheels = [str(one) for one in (folder / "wheels").glob("*.whl")]
    python = folder / "env" / "bin" / "python"
    command = [*pip, "--python", str(python), "install", "--no-index", "--no-deps", "--no-compile", *wheels]
    subprocess.run(command, check=True, timeout=300)
    subprocess.run([*pip, "--python", str(python), "check"], check=True, timeout=60)
    return folder


def test_client_is_small_and_knows_no_torch(client):
    wheels = list((client / "wheels").glob("*.whl"))
    assert sum(one.stat().st_size for one in wheels) < 25e6
    assert not [one.name for one in wheels if one.name.startswith(("torch", "numpy", "fastapi_cli", "bhive_mltf-"))]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_verb_logged_out_is_one_sentence(client, tmp_path, words):
    program = client / "env" / "bin" / "bhive-mltf-client"
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    options = {"capture_output": True, "text": True, "check": False, "timeout": 120, "cwd": tmp_path, "env": variables}
    done = subprocess.run([program, *words], **options)
    assert done.returncode == VERBS[words], done.stderr
    said = done.stderr if VERBS[words] else done.stdout
    assert len(said.splitlines()) == 1, said
    assert "Traceback" not in done.stderr
    helped = subprocess.run([program, words[0], "--help"], **options)
    assert (helped.returncode, f"bhive-mltf-client {words[0]}" in helped.stdout) == (0, True)
