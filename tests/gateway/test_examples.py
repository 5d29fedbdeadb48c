"""The example projects, as the gateway reads them and without a gateway."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bhive_mltf.gateway.environments.wanted import read_wanted
from bhive_mltf.gateway.projects import mlproject
from tests.gateway.stack import EXAMPLE

PROJECTS = sorted(path.parent for path in EXAMPLE.parent.glob("*/MLproject"))


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_gateway_takes_every_example(folder):
    project = mlproject.parse((folder / "MLproject").read_text())
    point = project.entry_points["main"]
    needed = {name: "x" for name, one in point.parameters.items() if one.default is None}
    assert point.argv(needed)
    kind, _, name = project.environment.partition(": ")
    if kind:
        assert read_wanted(name, lambda one: (folder / one).read_text()).requirements


@pytest.mark.gateway
def test_ddp_project_saves_when_warned_and_goes_on(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLTF_"))}
    variables = {**kept, "MLTF_CHECKPOINT_DIR": str(tmp_path), "MASTER_PORT": "0"}
    command = [sys.executable, str(Path(EXAMPLE).parent / "ddp_project" / "train.py"), "--pause", "0.2"]
    started = {"env": variables, "cwd": tmp_path, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--epochs", "400"], **started) as first:
        seen = [first.stdout.readline()]
        first.send_signal(signal.SIGUSR2)
        seen += first.stdout.readlines()
    assert first.returncode == 75
    second = subprocess.run([*command, "--epochs", str(len(seen) + 2)], **started, check=True, timeout=60)
    # each epoch once
    lines = [*seen, *second.stdout.splitlines()]
    assert [line.split(":")[0] for line in lines] == [f"epoch {number}" for number in range(len(seen) + 2)]
    assert len(seen) < 400
