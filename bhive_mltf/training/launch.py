"""Starting a training: one rank in this process, several on this machine as processes of their own."""

from __future__ import annotations

import sys

from bhive_mltf.errors import ParameterError
from bhive_mltf.ranks.launcher import Launcher, LaunchRequest, LocalRanks
from bhive_mltf.training.plan import TrainingPlan

ENTRYPOINT = (sys.executable, "-m", "bhive_mltf.training")


def launch(plan: TrainingPlan, launcher: Launcher | None = None) -> None:
    """Write the plan to its directory and train; returns when the training is done.

    Parameters
    ----------
    launcher : starts the ranks; by default one rank runs here, and what the engine raises passes through.

    Raises
    ------
    ParameterError : more nodes than ranks can be started on from here.
    RankFailedError, TrainingInterruptedError : see `LocalRanks.launch`.
    """
    plan = plan.model_copy(update={"ranks_per_node": resolve_ranks(plan), "directory": plan.directory.absolute()})
    plan.write()
    if launcher is None:
        if plan.nodes > 1:
            raise ParameterError(
                f"nodes is {plan.nodes}, but ranks are started on this machine only, also inside an allocation: train "
                "as a job (--slurm PROFILE), or leave nodes at 1"
            )
        if plan.ranks_per_node == 1:
            _train_here(plan)
            return
        launcher = LocalRanks(ENTRYPOINT)
    launcher.launch(LaunchRequest(plan.directory, plan.path, plan.ranks_per_node))


def resolve_ranks(plan: TrainingPlan) -> int:
    """Ranks per node; 0 in the plan means one per visible GPU, else one."""
    if plan.ranks_per_node > 0:
        return plan.ranks_per_node
    import torch

    return max(torch.cuda.device_count(), 1)


def _train_here(plan: TrainingPlan) -> None:
    from bhive_mltf.ranks.distributed import World, pick_device
    from bhive_mltf.training.engine import train

    train(plan, World(device=pick_device(0)))
