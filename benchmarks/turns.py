"""The real Trainer and whoever it is compared with, step by step in turns, on the same batches.

The trainer's loader is what gives the turns: between two batches it lets the others have theirs, so that a machine that
gets slower does so for all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from bhive_mltf.interface import Batch
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training import build as ingredients
from bhive_mltf.training import engine
from bhive_mltf.training.build import Ingredients
from bhive_mltf.training.monitoring.observers import Observer
from bhive_mltf.training.optim.optimisers import create_optimizer
from bhive_mltf.training.plan import TrainingPlan
from bhive_mltf.training.precision import Precision

ENGINE = "engine"
CPU = torch.device("cpu")
ROUNDS_PER_EPOCH = 400  # the trainer looks at its losses twenty times in them
Step = Callable[[int], float]  # number of the round -> seconds


class _Over(Exception):  # noqa: N818 - no error: how the trainer is told to leave
    pass


class Turns:
    """A loader in which the trainer is one of several who take turns; `seconds` of each, round by round."""

    def __init__(self, batches: Sequence[Batch], others: Mapping[str, Step], *, rounds: int, warm_up: int) -> None:
        self._batches, self._others = batches, others
        self._rounds, self._warm_up = rounds, warm_up
        self.seconds: dict[str, list[float]] = {name: [] for name in (ENGINE, *others)}

    def n_batches(self, epoch: int) -> int:  # noqa: ARG002 - of any epoch
        return max(ROUNDS_PER_EPOCH, self._warm_up + self._rounds + 1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:  # noqa: ARG002 - there is one epoch only
        for number in range(self._warm_up + self._rounds):
            names = [ENGINE, *self._others]
            # nobody has always the same one before him
            for name in names if number % 2 else reversed(names):
                if name == ENGINE:
                    started = time.perf_counter()
                    yield self._batches[number % len(self._batches)]
                    seconds = time.perf_counter() - started
                else:
                    seconds = self._others[name](number)
                if number >= self._warm_up:
                    self.seconds[name].append(seconds)
        raise _Over


class Bare:
    """Forward, backward, step: nothing else."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], plan: TrainingPlan) -> None:
        self._model, self._batches, self._precision = model.train(), batches, Precision.of(plan, CPU)
        self._optimizer = create_optimizer(
            plan.optimizer, model.parameters(), plan.learning_rate, betas=plan.betas, eps=plan.eps
        )
        self._loss = nn.CrossEntropyLoss()

    def __call__(self, number: int) -> float:
        batch = self._batches[number % len(self._batches)]
        started = time.perf_counter()
        with self._precision.autocasting(CPU):
            loss = self._loss(self._model(batch), batch.target)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started


def take_batches(plan: TrainingPlan, number: int) -> list[Batch]:
    """The first batches of the plan's training, held in memory."""
    parts = ingredients.build(plan, World())
    # the loader may use their memory again
    return [batch.map(torch.clone) for batch in itertools.islice(parts.training.epoch(0), number)]


def train_in_turns(
    plan: TrainingPlan, batches: Sequence[Batch], others: Mapping[str, Step], *, rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each step of the engine, of the bare loop and of the others."""
    turns: list[Turns] = []

    def build(plan: TrainingPlan, world: World) -> Ingredients:
        parts = ingredients.build(plan, world)
        bare = Bare(ingredients.build(plan, world).model, batches, plan)
        turns.append(Turns(batches, {"bare": bare, **others}, rounds=rounds, warm_up=warm_up))
        return replace(parts, training=turns[0])

    try:
        engine.train(plan, World(), build, Observer())
    except _Over:
        return turns[0].seconds
    raise AssertionError("the trainer ended before its turns")
