"""Scripts against golden files. `REFRESH_GOLDEN=1 pytest tests/slurm/test_script.py` writes them anew."""

import difflib
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from bhive_mltf.slurm import job, profiles, script

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = {
    "mltf-a6000_ranks": ("mltf-a6000", {"nodes": 2, "hours": 36.5, "account": "btv"}, {"kind": "ranks", "nodes": 2}),
    "mltf-cpu_command": ("mltf-cpu", {}, {"kind": "command"}),
    "generic_ranks": ("generic", {}, {"kind": "ranks", "ranks_per_node": 3, "threads_per_rank": 6}),
    "no_requeue": ("generic", {"requeue": False, "qos": "short", "constraint": "avx2&ib", "hours": 0.1}, {}),
    "gpus_per_node": ("mltf-a6000", {"gpu_style": "gpus-per-node"}, {"kind": "ranks", "ranks_per_node": 2}),
    "whole_nodes": (
        "mltf-a6000",
        {"gpu_style": "none", "options": {"exclusive": True, "reservation": "night", "x-off": False}},
        {"kind": "ranks"},
    ),
    "modules_and_venv": (
        "generic",
        {"modules": ["gcc/12", "cuda"], "venv": "/sw/my env", "setup": ["ulimit -n 4096"], "python": "python"},
        {},
    ),
    "container": (
        "mltf-a6000",
        {
            "container": {"image": "/sw/a b.sif", "binds": ["/etc/slurm"], "options": ["--pid"]},
            "python": "python3",
        },
        {"kind": "ranks", "environment": {"DATA_PATH": "/data/my out"}},
    ),
    "hostile_path": (
        "generic",
        {},
        {"directory": Path('/data/it\'s "a"\n$(touch x) ü; #'), "environment": {"A": "x'y\nz $HOME"}},
    ),
    "pattern_in_path": ("generic", {}, {"directory": Path("/data/50%j\\n")}),
}


def rendered(name):
    profile_name, overrides, options = VARIANTS[name]
    profile = profiles.read_profile(profile_name, **{"python": "/sw/bin/python", **overrides})
    settings = {"name": "TrainingTask t1", "kind": "command", "command": ["law", "run"], "directory": Path("/data/out")}
    spec = job.make_spec(profile, **{**settings, **options}).model_copy(update={"token": "0123456789ab"})
    return script.render(profile, spec), spec


@pytest.mark.parametrize("name", VARIANTS)
def test_golden(name):
    text, _ = rendered(name)
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("REFRESH_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    expected = path.read_text(encoding="utf-8") if path.exists() else ""
    changes = "".join(difflib.unified_diff(expected.splitlines(True), text.splitlines(True), str(path), "rendered"))
    assert not changes, f"the script changed; REFRESH_GOLDEN=1 takes it over:\n{changes}"


def test_there_is_no_golden_file_without_a_variant():
    assert {path.stem for path in GOLDEN.glob("*.sh")} == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_bash_takes_every_script(name):
    text, _ = rendered(name)
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_hostile_values_arrive_whole(tmp_path):
    folder = tmp_path / 'it\'s "a"\n$(touch x) ü; #\\ %j'
    folder.mkdir()
    shown = tmp_path / "python"
    shown.write_text('#!/bin/bash\nprintf "%s\\0" "$@" "$A"\n')
    shown.chmod(0o755)
    profile = profiles.read_profile("generic", python=str(shown))
    value = "x'y\nz $HOME `id`"
    spec = job.make_spec(profile, name="t", kind="command", command=["x"], directory=folder, environment={"A": value})
    done = subprocess.run(
        ["bash", "-c", script.render(profile, spec)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    # the folder has a pattern in it, so that the script writes its log itself
    arguments = (tmp_path / "job_.log").read_text().split("\0")
    assert done.stdout == ""
    assert arguments == ["-m", "bhive_mltf.slurm.batch_step", str(folder / "slurm" / "spec.json"), value, ""]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, "python", "job_.log"])


def test_no_path_is_part_of_an_option_line():
    text, spec = rendered("hostile_path")
    options = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert not any("data" in line for line in options)
    assert shlex.split(text.split("exec ", 1)[1])[-1] == str(spec.folder / "spec.json")


@pytest.mark.parametrize(
    ("hours", "time"), [(1 / 60, "0-00:01:00"), (0.011, "0-00:01:00"), (1.5, "0-01:30:00"), (49, "2-01:00:00")]
)
def test_time(hours, time):
    profile = profiles.read_profile("generic", hours=hours, signal_seconds=10)
    spec = job.make_spec(profile, name="t", kind="command", command=["x"], directory=Path("/data"))
    assert f"#SBATCH --time={time}\n" in script.render(profile, spec)
