"""A rank as a process of its own: `python -m bhive_mltf.training PLAN`."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bhive_mltf.errors import BhiveError
from bhive_mltf.files import atomic
from bhive_mltf.ranks import signals, srun
from bhive_mltf.ranks.process import begin_rank, leave

if TYPE_CHECKING:
    from bhive_mltf.training.engine import Builder

LOG_FOLDER = "logs"
# What messages of gloo and NCCL say when the other side is gone.
_LOST = ("gloo/", "Connection closed by peer", "Connection reset", "NCCL", "ProcessGroup", "TCPStore", "Broken pipe")
logger = logging.getLogger(__name__)


def error_path(directory: Path, rank: int) -> Path:
    """Where a rank leaves the reason of its failure."""
    return directory / LOG_FOLDER / f"rank_{rank}.error.json"


def main(arguments: Sequence[str]) -> NoReturn:
    """Train one rank of the plan named by the only argument, then end the process.

    The exit code is 0 when the training is done, 75 when a signal stopped it and it is saved, else 1. Inside a job it
    is 0 for a training that was stopped too, since srun would kill the other ranks; rank 0 leaves word.
    """
    as_process(arguments, lambda path: _train(path, None))


def as_process(arguments: Sequence[str], work: Callable[[Path], int]) -> NoReturn:
    """Do the work of a rank on the plan named by the only argument, see `guarded`, and end the process."""
    # before the slow imports: the launcher may go away, and a batch system may warn, at any time
    begin_rank()
    if len(arguments) != 1:
        spec = sys.modules["__main__"].__spec__
        module = spec.name.removesuffix(".__main__") if spec is not None else sys.argv[0]
        sys.stderr.write(f"usage: python -m {module} PLAN\n")
        leave(2)
    path = Path(arguments[0])
    leave(guarded(path.absolute().parent, lambda: work(path)))


def run(plan_path: Path, builder: Builder | None = None) -> int:
    """Train one rank of the plan; returns the exit code. `builder` takes the place of `ingredients.build`."""
    return guarded(plan_path.absolute().parent, lambda: _train(plan_path, builder))


def guarded(directory: Path, work: Callable[[], int]) -> int:
    """Do a rank's work; its exit code, 1 for an error, whose reason is left in `directory`."""
    os.environ.pop("MLFLOW_RUN_ID", None)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the last stop: told to the launcher, and to the log
        _leave_reason(directory, error)
        return 1


def _train(plan_path: Path, builder: Builder | None) -> int:
    from bhive_mltf.ranks.distributed import join_world
    from bhive_mltf.training import build, engine
    from bhive_mltf.training.plan import TrainingPlan

    plan = TrainingPlan.read(plan_path)
    interrupted = False
    with join_world() as world:
        try:
            engine.train(plan, world, builder or build.build)
        except signals.TrainingInterruptedError as error:
            # all ranks stop at the same step: the group can be taken down in order
            interrupted = True
            if world.is_first:
                logger.warning("%s", error)
    return signals.INTERRUPTED_EXIT_CODE if interrupted and srun.job_folder() is None else 0


def _leave_reason(directory: Path, error: Exception) -> None:
    rank = int(os.environ.get("RANK", "0"))
    text = traceback.format_exc()
    by_user = isinstance(error, BhiveError)
    lost = not by_user and isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
    if by_user:
        logger.error("rank %d: %s", rank, error)
    elif lost:
        logger.error("rank %d lost the connection to another rank", rank)
    else:
        logger.error("rank %d failed:\n%s", rank, text)
    reason = {
        "rank": rank,
        "time": time.time(),
        "kind": type(error).__name__,
        "message": str(error),
        "lost": lost,
        "by_user": by_user,
        "no_space": isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT),
        "traceback": text,
    }
    try:
        atomic.write_json(error_path(directory, rank), reason)
    except OSError:
        logger.exception("rank %d cannot write its error file", rank)
