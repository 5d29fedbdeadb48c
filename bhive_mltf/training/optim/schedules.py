"""Learning rates as pure functions of how far the training is.

A schedule has no state: resuming needs nothing but the position, and its length does not depend on counts
of batches that differ from epoch to epoch. After the planned epochs (`extend_training`) the last value holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bhive_mltf.errors import ParameterError
from bhive_mltf.training import choices

DECAY_SHARE = 0.3
SHORT_WARMUP = 0.1


@dataclass(frozen=True)
class LearningRateSchedule:
    """Factor on the learning rate.

    name : one of `choices.SCHEDULES`.
    epochs : planned epochs, without extensions; of a training by iterations its rounds, `total_iterations` /
        `n_iters_per_save`.
    decay_factor : factor reached at the end.
    """

    name: str
    epochs: float
    decay_factor: float

    def __post_init__(self) -> None:
        if self.name not in _SHAPES:
            raise ParameterError(f"lr_scheduler is {self.name!r}, but must be one of {', '.join(choices.SCHEDULES)}")

    def factor(self, epoch: int, fraction: float) -> float:
        """The factor in epoch or round `epoch` (0-based) once `fraction` of its batches are done."""
        return _SHAPES[self.name](self, epoch, fraction)


def _epoch_lin_decay(schedule: LearningRateSchedule, epoch: int, fraction: float) -> float:  # noqa: ARG001
    """Upstream's default: each of the last 30 % of the epochs multiplies by decay_factor^(1/n)."""
    epochs = math.ceil(schedule.epochs)
    n = max(1, int(DECAY_SHARE * epochs))
    done = min(max(epoch - (epochs - n) + 1, 0), n)
    return float(schedule.decay_factor ** (done / n))


def _batch_lin_decay(schedule: LearningRateSchedule, epoch: int, fraction: float) -> float:
    """The same per batch: flat for 70 %, then geometric down to decay_factor."""
    length = DECAY_SHARE * schedule.epochs
    done = (epoch + fraction - (schedule.epochs - length)) / max(length, 1e-12)
    return float(schedule.decay_factor ** min(max(done, 0.0), 1.0))


def _batch_cosine_warmup(schedule: LearningRateSchedule, epoch: int, fraction: float) -> float:
    """Linear warm-up over one epoch (a tenth of a training of one epoch), then half a cosine."""
    warmup = 1.0 if schedule.epochs > 1 else SHORT_WARMUP
    position = epoch + fraction
    low = schedule.decay_factor
    if position < warmup:
        return low + (1.0 - low) * position / warmup
    done = min((position - warmup) / max(schedule.epochs - warmup, 1e-12), 1.0)
    return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * done))


_SHAPES: dict[str, Callable[[LearningRateSchedule, int, float], float]] = {
    "epoch_lin_decay": _epoch_lin_decay,
    "batch_lin_decay": _batch_lin_decay,
    "batch_cosine_warmup": _batch_cosine_warmup,
    "batch_exp_decay": _batch_lin_decay,  # the Particle Transformer's schedule: the same shape, and its better name
}
