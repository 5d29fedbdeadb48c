"""Where a training is: all that changes from step to step besides weights and optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bhive_mltf.ranks.distributed import World
from bhive_mltf.training.metrics import N_SUMS, Histories


@dataclass
class Position:
    """A training between two steps.

    epoch : pass over the training jets that the next step belongs to; batch : batches of it that are done;
    global_step : steps done in all; round_start : those done before the running round (`training.rounds`).
    sums : this rank's `jet_sums` of the running round; seconds : spent in it.
    best_epoch : number of the round with the lowest validation loss, -1 before the first.
    """

    epoch: int = 0
    batch: int = 0
    global_step: int = 0
    round_start: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(N_SUMS, dtype=torch.float64))
    seconds: float = 0.0
    histories: Histories = field(default_factory=Histories)
    best_loss_val: float = math.inf
    best_epoch: int = -1

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.batch = 0

    def begin_round(self) -> None:
        """Forget the figures of the round before."""
        self.round_start = self.global_step
        self.sums = torch.zeros_like(self.sums)
        self.seconds = 0.0

    def state(self, world: World, number: int, complete: bool) -> dict[str, Any]:
        """Plain values for a checkpoint, after round `number` when it is `complete`; to be called by all ranks."""
        values = self.histories.values
        # upstream's checkpoints hold the last value of each history by itself
        last = {name: (entries[-1] if entries else math.nan) for name, entries in values.items()}
        return {
            "epoch": number,
            "epoch_complete": complete,
            "data_pass": self.epoch,
            "batch_in_epoch": self.batch,
            "global_step": self.global_step,
            "round_start": self.round_start,
            "epoch_sums": world.gather(self.sums),
            "epoch_seconds": self.seconds,
            "histories": {name: list(entries) for name, entries in values.items()},
            "best_loss_val": self.best_loss_val,
            "best_epoch": self.best_epoch,
            **{name: value for name, value in last.items() if not name.endswith("_time")},
        }

    @classmethod
    def restore(cls, state: dict[str, Any], world: World) -> Position:
        """The position in a checkpoint; with another number of ranks the first one takes all sums."""
        sums: Tensor = state["epoch_sums"]
        if len(sums) == world.size:
            own = sums[world.rank]
        else:
            own = sums.sum(0) if world.is_first else torch.zeros(N_SUMS, dtype=torch.float64)
        return cls(
            epoch=state["data_pass"],
            batch=state["batch_in_epoch"],
            global_step=state["global_step"],
            round_start=state["round_start"],
            sums=own.clone(),
            seconds=state["epoch_seconds"],
            histories=Histories({name: list(entries) for name, entries in state["histories"].items()}),
            best_loss_val=state["best_loss_val"],
            best_epoch=state["best_epoch"],
        )
