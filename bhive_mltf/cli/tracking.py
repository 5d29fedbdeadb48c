"""`bhive-mltf tracking`: deliver what trainings could not send to MLflow, close the runs of killed ones, reports."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.errors import ParameterError, TrackingError
from bhive_mltf.files.lock import COMMAND_FOLDER

if TYPE_CHECKING:
    from bhive_mltf.tracking import sync

TIMEOUT = 600.0  # s, for one training


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


def ended_as(directory: Path) -> str:
    """The status of a training that no process works on: FINISHED when its last model is there, else KILLED."""
    from bhive_mltf.training.plan import FILE_NAME, TrainingPlan

    try:
        # unchecked: the plan may be one of another version
        plan = TrainingPlan.model_construct(**json.loads((directory / FILE_NAME).read_text(encoding="utf-8")))
        last = plan.last_number
    except (OSError, ValueError, TypeError):
        return "KILLED"
    return "FINISHED" if (directory / f"model_{last}.pt").exists() else "KILLED"


def sentence(done: sync.Synced) -> str:
    """What was done for one training, in words."""
    parts = [f"the run was closed as {done.closed}"] if done.closed else []
    for words, entries in (("delivered", done.delivered), ("NOT delivered", done.left)):
        if entries:
            parts.append(f"{words} " + ", ".join(f"{what}: {count}" for what, count in sorted(entries.items())))
    return "; ".join(parts)
