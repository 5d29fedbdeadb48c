"""A rank as a process of its own: `python -m bhive_mltf.training PLAN`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bhive_mltf.ranks import signals, srun
from bhive_mltf.ranks.process import run_rank, slow_imports

if TYPE_CHECKING:
    from bhive_mltf.training.build import Builder

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> NoReturn:
    """Train one rank of the plan named by the only argument, then end the process.

    The exit code is 0 when the training is done, 75 when a signal stopped it and it is saved, else 1. Inside a job it
    is 0 for a training that was stopped too, since srun would kill the other ranks; rank 0 leaves a note.
    """
    run_rank(arguments, train_rank)


def train_rank(plan_path: Path, builder: Builder | None = None) -> int:
    """Train one rank of the plan; returns the exit code. `builder` takes the place of `build.build`."""
    # after `begin_rank`
    with slow_imports():
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
