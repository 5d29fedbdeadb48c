"""`bhive-mltf tracking`: deliver what trainings could not send to MLflow, close the runs of killed ones, reports."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.errors import ParameterError, SlurmError, TrackingError
from bhive_mltf.files.lock import COMMAND_FOLDER

if TYPE_CHECKING:
    from bhive_mltf.tracking import sync

TIMEOUT = 600.0  # s, for one training
logger = logging.getLogger(__name__)


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "tracking", help="what is not in MLflow yet; reports of trainings", description=__doc__
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser("sync", help="deliver it; close the runs of trainings that were killed")
    action.add_argument("folder", nargs="?", help="a training, or a folder with trainings (default: $DATA_PATH)")
    action.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one training (%(default)s)")
    action.set_defaults(run=run)
    action = actions.add_parser("report", help="one page per training: curves, figures, load, provenance")
    action.add_argument("folder", nargs="?", help="a training, or a folder with trainings (default: $DATA_PATH)")
    action.set_defaults(run=report)


def report(options: argparse.Namespace) -> None:
    """Write `report.html` beside each training and print where.

    Raises
    ------
    ParameterError : no folder is given, or it holds no run.
    """
    from bhive_mltf.tracking.report import page

    for directory in _directories(options.folder):
        sys.stdout.write(f"{page.write(directory)}\n")


def run(options: argparse.Namespace) -> None:
    """Deliver, and print what was done.

    Raises
    ------
    ParameterError : no folder is given, or it holds no run.
    TrackingError : something could not be delivered; it is kept.
    """
    from bhive_mltf.tracking import sync

    left = 0
    for directory in _directories(options.folder):
        done = sync.sync(directory, ended_as, (".", COMMAND_FOLDER), options.timeout)
        left += sum(done.left.values())
        if done.delivered or done.left or done.closed:
            sys.stdout.write(f"{directory}: {sentence(done)}\n")
    if left:
        raise TrackingError(f"{left} entries could not be delivered and are kept: type the command again")


def _directories(given: str | None) -> list[Path]:
    from bhive_mltf.tracking import sync

    folder = given or os.environ.get("DATA_PATH")
    if not folder:
        raise ParameterError("no folder: give one, or run 'source setup.sh', which sets DATA_PATH")
    found = list(sync.directories(Path(folder)))
    if not found:
        raise ParameterError(f"{folder} holds no training with an MLflow run (run.json): run TrainingTask")
    return found


def ended_as(directory: Path) -> sync.End:
    """How a training ended that no process works on.

    FINISHED when its last model is there; else as its job did, where nobody has seen that one end; else KILLED. No
    status while a job runs, or may run.
    """
    from bhive_mltf.slurm import dispatch
    from bhive_mltf.slurm.client import Slurm
    from bhive_mltf.slurm.record import JobRecord
    from bhive_mltf.tracking import sync

    if _is_complete(directory):
        return sync.End("FINISHED")
    try:
        job = JobRecord.read(directory)
    except SlurmError as error:
        logger.warning("the run of %s is left as it is: %s", directory, error)
        return sync.End("")
    if job is None or job.is_over:
        return sync.End("KILLED")
    job = dispatch.find_out(job, Slurm(job.slurm_conf))
    status = job.state.run_status
    if status in ("FAILED", "KILLED"):
        return sync.End(status, dispatch.run_failure(job), job.created if job.is_over else None)
    if job.is_over:
        return sync.End("KILLED")
    return sync.End("SCHEDULED" if job.state.is_waiting else "")


def _is_complete(directory: Path) -> bool:
    from bhive_mltf.training.plan import FILE_NAME, TrainingPlan

    try:
        # unchecked: the plan may be one of another version
        plan = TrainingPlan.model_construct(**json.loads((directory / FILE_NAME).read_text(encoding="utf-8")))
        last = plan.last_number
    except (OSError, ValueError, TypeError):
        return False
    return (directory / f"model_{last}.pt").exists()


def sentence(done: sync.Synced) -> str:
    """What was done for one training, in words."""
    waits = "the run waits for its job"
    parts = [waits if done.closed == "SCHEDULED" else f"the run was closed as {done.closed}"] if done.closed else []
    for words, entries in (("delivered", done.delivered), ("NOT delivered", done.left)):
        if entries:
            parts.append(f"{words} " + ", ".join(f"{what}: {count}" for what, count in sorted(entries.items())))
    return "; ".join(parts)
