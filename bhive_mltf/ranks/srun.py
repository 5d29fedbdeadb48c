"""A rank that `srun` started, one task per rank: its rank number, and the note it leaves for its job.

Everything comes by environment variables, so that nothing here knows how jobs are made.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from signal import Signals

from bhive_mltf.ranks.files import JOB_FOLDER_VARIABLE, StoppedNote

# SLURM's name -> torch's; the first decides data and who writes, the last only picks the device.
_IDENTITY = {"SLURM_PROCID": "RANK", "SLURM_STEP_NUM_TASKS": "WORLD_SIZE", "SLURM_LOCALID": "LOCAL_RANK"}


def is_srun_task() -> bool:
    """Whether this process is a task of an srun step, and no other launcher named its rank."""
    return "SLURM_STEP_ID" in os.environ and all(name in os.environ for name in _IDENTITY) and "RANK" not in os.environ


def take_identity() -> None:
    """Take rank, number of ranks and local rank from SLURM."""
    for theirs, ours in _IDENTITY.items():
        os.environ[ours] = os.environ[theirs]


def job_folder() -> Path | None:
    """Where the job around this rank keeps its files; None outside a job."""
    given = os.environ.get(JOB_FOLDER_VARIABLE)
    return Path(given) if given else None


def attempt() -> int:
    """How often this job was started, this time included."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) + 1


def goes_on(received: Signals | None) -> bool:
    """Whether a training that was stopped by this signal to this rank is started again by its job.

    SIGTERM comes from a scheduler that ends the job; the others warn of its end, or came to another rank.
    """
    return job_folder() is not None and received is not Signals.SIGTERM


def leave_stopped_note(step: int, received: Signals | None) -> None:
    """Leave a note for the job that the ranks stopped in order, with everything saved; nothing outside a job."""
    folder = job_folder()
    if folder is not None:
        StoppedNote(attempt(), step, received.name if received else "").write(folder)


def attempt_tags() -> dict[str, str]:
    """What is recorded of this attempt: job, nodes, beginning; empty outside a job."""
    if job_folder() is None:
        return {}
    job = os.environ.get("SLURM_JOB_ID", "")
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST", ""))
    begun = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return {"slurm_job_id": job, f"slurm_attempt_{attempt()}": f"job {job} on {nodes} from {begun}"}
