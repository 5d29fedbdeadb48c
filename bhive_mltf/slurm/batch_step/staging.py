"""Training sets on each node's own disk while the ranks run.

`python -m bhive_mltf.slurm.batch_step.staging make|remove PLACE [FOLDER ...]` is started once per node.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bhive_mltf.files import node_copy
from bhive_mltf.slurm.batch_step import steps
from bhive_mltf.slurm.batch_step.allocation import Allocation
from bhive_mltf.slurm.job import JobSpec

_PREFIX = "bhive_"
REMOVE_WITHIN_S = 40.0
_TRY_S = 10.0
_AGAIN_S = 3.0
logger = logging.getLogger(__name__)


def make_copies(spec: JobSpec, allocation: Allocation, variables: Mapping[str, str]) -> dict[str, str]:
    """Copy `spec.staged` to all nodes; the variables, with what ranks need to find the copies.

    A node that cannot copy says so in the job's log, and its ranks read what all nodes share.
    """
    if not (spec.staging and spec.staged):
        return dict(variables)
    place = f"{spec.staging}/{_PREFIX}{allocation.job_id}"
    _on_each_node(spec, variables, "make", place, *spec.staged)
    return {**variables, node_copy.VARIABLE: place}


def remove_copies(spec: JobSpec, variables: Mapping[str, str], within_s: float = REMOVE_WITHIN_S) -> None:
    """Remove what `make_copies` made; what remains is removed by this user's next job there.

    within_s : the controller may be away for a while, where an srun may hang; until then it is tried again.
    """
    if node_copy.VARIABLE not in variables:
        return
    deadline = time.monotonic() + within_s
    try_s = min(within_s, _TRY_S)
    while not _on_each_node(spec, variables, "remove", variables[node_copy.VARIABLE], within_s=try_s):
        if time.monotonic() + _AGAIN_S > deadline:
            logger.warning("copies of training sets may be left in %s", variables[node_copy.VARIABLE])
            return
        time.sleep(_AGAIN_S)


def _on_each_node(spec: JobSpec, variables: Mapping[str, str], *arguments: str, within_s: float | None = None) -> bool:
    program, outside = steps.srun(spec, variables)
    work = [sys.executable, "-m", "bhive_mltf.slurm.batch_step.staging", *arguments]
    # a controller that was away may take the ranks for still running
    command = [*steps.once_per_node(spec.nodes, spec, "--overlap"), *work]
    try:
        done = subprocess.run(command, executable=program, env=outside, timeout=within_s, check=False)
    except subprocess.TimeoutExpired:
        logger.info("srun of '%s' of copies gave no answer in %g s", arguments[0], within_s)
        return False
    return done.returncode == 0


def copy_sets(place: Path, folders: Sequence[Path]) -> str:
    """Copy folders to this node; a sentence about it."""
    _sweep(place)
    begun = time.monotonic()
    try:
        size = sum(node_copy.make(folder, place) for folder in folders)
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        return f"training sets are read where they are, since they cannot be copied: {error}"
    return f"{size / 1e6:.1f} MB of training sets copied to {place} in {time.monotonic() - begun:.1f} s"


def _sweep(place: Path) -> None:
    """Remove copies of this job's attempt before, and of this user's jobs that are no longer on this node."""
    shutil.rmtree(place, ignore_errors=True)
    command = ["squeue", "--noheader", "--format=%A", f"--nodelist={_node()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    here = {f"{_PREFIX}{job_id}" for job_id in done.stdout.split()}
    if done.returncode or place.name not in here:
        return
    for path in place.parent.glob(f"{_PREFIX}*"):
        if path.name not in here and path.stat().st_uid == os.getuid():
            shutil.rmtree(path, ignore_errors=True)


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def main(arguments: Sequence[str]) -> int:
    """Make or remove the copies of this node."""
    # the warning of the time limit is for the ranks
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    place = Path(os.path.expandvars(arguments[1]))
    if arguments[0] == "make":
        sys.stderr.write(f"node {_node()}: {copy_sets(place, [Path(folder) for folder in arguments[2:]])}\n")
    else:
        shutil.rmtree(place, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
