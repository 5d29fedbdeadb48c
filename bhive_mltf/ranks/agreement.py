"""Decisions that all ranks must take at the same step: stop, save."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from bhive_mltf.ranks.distributed import World


class RankAgreement:
    """Agreement at step boundaries; each rank may ask, all get the same answer.

    The reduction over the ranks overlaps with the next step, so that no rank waits for it: the answer comes one step
    later. A rank that asks goes on asking until the answer is yes.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: tuple[Tensor, dist.Work] | None = None

    def at_step(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """(stop, save) as agreed; the question of the step before when there are several ranks."""
        if self._world.size == 1:
            return stop, save
        answer = self.drain()
        question = torch.tensor([stop, save], dtype=torch.int32)
        work = dist.all_reduce(question, dist.ReduceOp.MAX, group=self._world.host_group, async_op=True)
        assert work is not None
        self._pending = question, work
        return answer

    def drain(self) -> tuple[bool, bool]:
        """The answer to the question under way, no for all if there is none."""
        if self._pending is None:
            return False, False
        question, work = self._pending
        self._pending = None
        work.wait()
        stop, save = question.tolist()
        return bool(stop), bool(save)

    def now(self, stop: bool) -> bool:
        """Whether any rank wants to stop, asked and answered at once; to be called by all ranks."""
        agreed, _ = self.drain()
        return bool(self._world.gather(torch.tensor([stop or agreed], dtype=torch.int32)).any())
