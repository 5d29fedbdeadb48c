"""Observers of a training, as callbacks: progress display, tracking. Nothing here changes the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from bhive_mltf.training.metrics import Figures
from bhive_mltf.training.plan import TrainingPlan


@dataclass(frozen=True)
class Interval:
    """Some steps of training, up to `global_step`; `loss` and `gradient_norm` (before clipping) are means over them.

    loader_wait : share of the time that the training waited for its loader, of the rank that waited longest.
    """

    epoch: int
    global_step: int
    loss: float
    learning_rate: float
    jets_per_s: float
    gradient_norm: float = 0.0
    loader_wait: float = 0.0


@dataclass(frozen=True)
class EpochResult:
    """A finished round; times in seconds.

    epoch : number of the round: the epoch, from 0, or with `use_iterations` the iterations done.
    """

    epoch: int
    train: Figures
    validation: Figures
    train_time: float
    val_time: float
    is_best: bool


class Observer:
    """Callbacks of a training; those of this base class do nothing."""

    def begin(self, plan: TrainingPlan, first_epoch: int, global_step: int, world_size: int) -> None:
        """The training starts, or goes on."""

    def phase(self, name: str, epoch: int, done: int, total: int) -> None:
        """Training or validation of a round starts or goes on; `done` of its `total` batches are there already.

        epoch : the epoch, from 0, or with `use_iterations` the iterations done.
        """

    def advance(self, n_jets: int) -> None:
        """A global batch of `n_jets` is done."""

    def interval(self, interval: Interval) -> None:
        """Some more steps of training are done."""

    def warn(self, text: str) -> None:
        """Something does not look well."""

    def file(self, path: Path, folder: str | None = None) -> None:
        """A file about the training was written."""

    def epoch(self, result: EpochResult) -> None:
        """A round is done; its files are being written."""

    def model(self, name: Literal["best", "last"], model: nn.Module, path: Path, epoch: int, loss: float) -> None:
        """The training is done; `model` has these weights, of the file `path`; `loss` is that of the validation."""

    def end(self, status: str) -> None:
        """FINISHED, FAILED, KILLED (asked to stop), or SCHEDULED (asked to stop; its job starts it again)."""


class Observers(Observer):
    """Several observers as one: each gets all callbacks."""

    def __init__(self, members: Sequence[Observer]) -> None:
        for name in vars(Observer):
            if not name.startswith("_"):
                setattr(self, name, partial(_call_all, [getattr(member, name) for member in members]))


def _call_all(callbacks: Sequence[Callable[..., None]], *values: Any, **named: Any) -> None:  # noqa: ANN401
    for callback in callbacks:
        callback(*values, **named)
