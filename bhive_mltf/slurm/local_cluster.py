"""Where the development cluster of this machine is, for profiles with `cluster: lab`.

`bhive_mltf.testing.slurm_lab` starts and stops it; here is only what a client has to know.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import psutil

from bhive_mltf.errors import SlurmError

DIRECTORY_VARIABLE = "BHIVE_SLURM_LAB"


def default_directory() -> Path:
    """`$BHIVE_SLURM_LAB`, else a folder of this user in the folder for temporary files."""
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"bhive-slurm-lab-{os.getuid()}"


def slurm_conf(directory: Path) -> Path:
    """What SLURM_CONF has to be for the cluster in this directory."""
    return directory / "etc" / "slurm.conf"


def running_conf() -> Path:
    """The `slurm.conf` of this user's running cluster; SlurmError when none runs."""
    directory = default_directory()
    if pid_of(directory, "slurmctld") is None:
        raise SlurmError("no lab cluster of this user runs on this machine: start one with 'make slurm-up'")
    return slurm_conf(directory)


def pid_of(directory: Path, daemon: str) -> int | None:
    """Process id of a running daemon of the cluster in this directory; None when it does not run."""
    try:
        pid = int((directory / "run" / f"{daemon}.pid").read_text())
        process = psutil.Process(pid)
        # process ids are given again: the daemon names the directory in its command or environment
        traces = [*process.cmdline(), process.environ().get("SLURM_CONF", "")]
        if process.status() == psutil.STATUS_ZOMBIE or str(directory) not in " ".join(traces):
            return None
    except (OSError, ValueError, psutil.Error):
        return None
    return pid
