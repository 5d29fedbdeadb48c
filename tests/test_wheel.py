"""What is installed: the files of the wheel, and law in a folder that holds no more than a two-line law.cfg."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import ANY

import pytest

REPOSITORY = Path(__file__).parents[1]
LAW_CFG = "[modules]\nbhive_mltf.law.tasks\n"


def build(folder, **environment):
    """Build the wheel from a copy of the sources; its path."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("bhive_mltf", "configs", "tasks", "workflows"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    command = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", command, folder / "dist"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", **environment},
        check=True,
        capture_output=True,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


@pytest.mark.long
def test_the_wheel_holds_the_library_and_the_configs(tmp_path):
    # without a compiler: the compiled parts are optional, and take most of the time
    wheel = build(tmp_path, CC="false")
    names = zipfile.ZipFile(wheel).namelist()
    found = {name for name in names if name.endswith((".py", ".yml", ".typed"))}
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "bhive_mltf").rglob("*.py")}
    configs = {f"bhive_mltf/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "configs").rglob("*.yml")}
    assert {"bhive_mltf/configs/default.yml", "bhive_mltf/configs/facility/generic.yml"} <= configs
    assert modules | configs | {"bhive_mltf/py.typed"} == found


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Runs `law` of an environment into which only the wheel was installed, without extras, in a folder of its own."""
    folder = tmp_path_factory.mktemp("empty")
    wheel = build(tmp_path_factory.mktemp("sources"))
    binaries = folder / "venv/bin"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [binaries / "pip", "install", "--quiet", "--constraint", REPOSITORY / "constraints.txt"]
    subprocess.run([*pip, wheel], check=True)
    (folder / "work").mkdir()
    (folder / "work/law.cfg").write_text(LAW_CFG)
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    environment = {**kept, "PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}

    def law(*arguments, code=0, **variables):
        done = subprocess.run(
            ["law", *map(str, arguments)],
            cwd=folder / "work",
            env={**environment, "DATA_PATH": str(folder / "output"), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    law.output = folder / "output"
    return law


@pytest.mark.long
def test_d12_law_runs_where_only_the_wheel_is_installed(shell):
    sample = REPOSITORY / "examples/btag_sample"
    options = [
        "--config", "offline_run3", "--model-name", "DeepJet", "--dataset-version", "v1", "--training-version", "t1",
        "--filelist", sample / "train.txt", "--batch-size", 256, "--n-threads", 0,
        "--TrainingTask-loss-weighting", True,
    ]  # fmt: skip
    assert "written 15 task(s)" in shell("index")
    assert "absent" in shell("run", "TrainingTask", *options, "--print-status", -1)
    shell("run", "TrainingTask", *options)
    assert "absent" not in shell("run", "TrainingTask", *options, "--print-status", 0)
    # mlflow-skinny: a run in files; what needs more names the extra
    (record,) = shell.output.rglob("run.json")
    assert json.loads(record.read_text())["tracking_uri"] == (shell.output / "mlruns").as_uri()
    test = ["--test-dataset-version", "v1_test", "--test-filelist", sample / "test.txt"]
    refused = shell("run", "ROCCurveTask", *options, *test, code=ANY)
    assert "pip install 'bhive_mltf[evaluation]'" in refused
    assert "Traceback" not in refused
