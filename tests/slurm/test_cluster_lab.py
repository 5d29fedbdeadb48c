"""`bhive-mltf slurm lab up | env | lab down`, as `make slurm-up` and a person's shell use them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.slurm.conftest import require_packages

pytestmark = pytest.mark.slurm
SHELL = """
set -e
bhive-mltf slurm lab up
eval "$(bhive-mltf slurm env)"
sinfo --noheader --partition=main --format=%D
srun --nodes=2 --ntasks=2 echo hello
bhive-mltf slurm lab up | head -n 1
bhive-mltf slurm lab down
! bhive-mltf slurm env
"""


def test_a_shell_starts_uses_and_stops_a_lab():
    require_packages()
    with tempfile.TemporaryDirectory(prefix="bhive-", dir="/tmp") as folder:
        # munge wants its socket where all can reach it
        Path(folder).chmod(0o755)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "BHIVE_SLURM_LAB": f"{folder}/lab"}
        environment.pop("SLURM_CONF", None)
        done = subprocess.run(
            ["bash", "-c", SHELL], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert not Path(folder, "lab").exists()
    first, hint, nodes, *hellos, again, stopped = done.stdout.splitlines()
    assert first == again == f"nodes n1, n2 are up in {folder}/lab; --slurm local-lab uses them", done.stderr
    assert hint.startswith("for squeue and friends")
    assert (nodes, hellos, stopped) == ("2", ["hello", "hello"], "stopped")
    assert "no lab cluster of this user runs on this machine: start one with 'make slurm-up'" in done.stderr
