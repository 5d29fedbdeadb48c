"""Rounds of a training: what lies between two validations, an epoch or a number of iterations.

A round ends with validation, histories and `model_<number>.pt`. The number is the epoch, from 0, or the iterations
done, from 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from bhive_mltf.training.checkpointing.position import Position
from bhive_mltf.training.plan import TrainingPlan


@dataclass(frozen=True)
class Rounds:
    """Rounds that are passes over the training jets.

    planned : rounds without extensions, what the schedule runs over. last : number of the last one.
    `n_batches` is the number of batches of the position's epoch.
    """

    planned: float
    last: int

    def is_left(self, position: Position) -> bool:
        """Whether there is more to train."""
        return position.epoch <= self.last

    def span(self, position: Position, n_batches: int) -> tuple[int, int]:
        """(batches done, batches in all) of the round that the next step belongs to."""
        return position.batch, n_batches

    def number(self, position: Position) -> int:
        """Number of the round whose last step was just done, or of the step itself inside a round of iterations."""
        return position.epoch

    def progress(self, position: Position, n_batches: int) -> tuple[int, float]:
        """(round, fraction of it that is done), for the schedule."""
        return position.epoch, position.batch / n_batches

    def advance(self, position: Position) -> None:
        """Go from the end of a round to the start of the next."""
        position.next_epoch()
        position.begin_round()


@dataclass(frozen=True)
class Iterations(Rounds):
    """A round ends at each multiple of `per_round` iterations, and at the last one; epochs end where they end."""

    per_round: int

    @override
    def is_left(self, position: Position) -> bool:
        return position.round_start < self.last

    @override
    def span(self, position: Position, n_batches: int) -> tuple[int, int]:
        start = position.round_start
        end = min((start // self.per_round + 1) * self.per_round, self.last)
        return position.global_step - start, end - start

    @override
    def number(self, position: Position) -> int:
        return position.global_step

    @override
    def progress(self, position: Position, n_batches: int) -> tuple[int, float]:
        whole, rest = divmod(position.global_step, self.per_round)
        return whole, rest / self.per_round

    @override
    def advance(self, position: Position) -> None:
        position.begin_round()


def rounds_of(plan: TrainingPlan) -> Rounds:
    """The rounds of a plan."""
    if plan.use_iterations:
        return Iterations(plan.total_iterations / plan.n_iters_per_save, plan.last_number, plan.n_iters_per_save)
    return Rounds(plan.epochs, plan.last_number)
