"""Where the time of a step goes, measured from outside of the engine: a training that is not measured pays nothing.

The parts are those of `scaling_table`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bhive_mltf.interface import Batch
from bhive_mltf.models.cpu_kernels import messages
from bhive_mltf.training.build import Loader
from bhive_mltf.training.scaling.table import PARTS


class MeasuredError(Exception):
    """The steps that were to be measured are done."""


@dataclass
class Stopwatch:
    """Hooks on a model and on all optimisers of this process, while it is used as a context.

    seconds : sums over the steps since `reset`, by part; `total` is all of them.
    """

    model: nn.Module
    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    _marks: dict[str, float] = field(default_factory=dict)
    _messages: float = 0.0
    _removable: list[Any] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.reset()
        model, hooks = self.model, self._removable
        hooks.append(model.register_forward_pre_hook(lambda *_: self._begin("forward")))
        hooks.append(model.register_forward_hook(lambda *_: self._end("forward")))
        # the last gradient of this rank: what follows until the update is waiting for the others
        hooks += [
            parameter.register_post_accumulate_grad_hook(self._gradient)  # type: ignore[no-untyped-call]
            for parameter in model.parameters()
            if parameter.requires_grad
        ]
        hooks.append(register_optimizer_step_pre_hook(lambda *_: self._update_begins()))
        hooks.append(register_optimizer_step_post_hook(lambda *_: self._end("update")))
        messages.listener = self._message
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        messages.listener = None
        for hook in self._removable:
            hook.remove()
        self._removable.clear()

    def reset(self) -> None:
        """Begin anew."""
        self.seconds = dict.fromkeys((*PARTS, "total"), 0.0)
        self._messages = 0.0

    def waited(self, seconds: float) -> None:
        """The loader took that long."""
        self.seconds["loader"] += seconds

    def stepped(self, seconds: float) -> None:
        """A step took that long, without the loader."""
        self.seconds["total"] += seconds

    def result(self) -> dict[str, float]:
        """Sums in seconds by part, and `total`, since `reset`."""
        found = dict(self.seconds)
        found["total"] += found["loader"]
        found["rest"] = found["total"] - sum(found[part] for part in PARTS if part != "rest")
        return found

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _begin(self, part: str) -> None:
        self._marks[part], self._messages = self._now(), 0.0

    def _end(self, part: str) -> None:
        now = self._now()
        self.seconds[part] += now - self._marks[part] - self._messages
        self._messages = 0.0
        if part == "forward":
            self._marks["backward"] = self._marks["gradient"] = now

    def _gradient(self, _: object) -> None:
        self._marks["gradient"] = time.perf_counter()

    def _update_begins(self) -> None:
        now = self._now()
        last = self._marks["gradient"] if self.device.type != "cuda" else now
        self.seconds["backward"] += last - self._marks["backward"] - self._messages
        self.seconds["communication"] += now - last
        self._begin("update")

    def _message(self, seconds: float) -> None:
        self._messages += seconds
        self.seconds["communication"] += seconds


class TimedLoader:
    """A loader without an end that tells a stopwatch what it took; MeasuredError after `steps` measured steps.

    The first `warm_up` steps are not counted.
    """

    def __init__(self, loader: Loader, watch: Stopwatch, *, warm_up: int, steps: int) -> None:
        self._loader, self._watch, self._warm_up, self._steps = loader, watch, warm_up, steps

    def n_batches(self, epoch: int) -> int:
        """More than will be asked for, so that no epoch ends."""
        return max(self._loader.n_batches(epoch), self._warm_up + self._steps + 1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch after the other, from `epoch` on."""
        batches = self._chain(epoch, start)
        for number in range(self._warm_up + self._steps):
            if number == self._warm_up:
                self._watch.reset()
            asked = time.perf_counter()
            batch = next(batches)
            given = time.perf_counter()
            self._watch.waited(given - asked)
            yield batch
            self._watch.stepped(time.perf_counter() - given)
        raise MeasuredError

    def _chain(self, epoch: int, start: int) -> Iterator[Batch]:
        while True:
            yield from self._loader.epoch(epoch, start)
            epoch, start = epoch + 1, 0
