"""How a training scales: the same steps with several numbers of ranks.

`python -m bhive_mltf.training.scaling.measure PLAN` is one rank of one measurement.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bhive_mltf.errors import TrainingError
from bhive_mltf.files import atomic
from bhive_mltf.interface import Batch
from bhive_mltf.ranks.distributed import World, join_world
from bhive_mltf.ranks.launcher import Launcher, LaunchRequest, LocalRanks
from bhive_mltf.ranks.process import run_rank
from bhive_mltf.training.build import Ingredients, Loader, build
from bhive_mltf.training.plan import TrainingPlan
from bhive_mltf.training.precision import Precision, float32_products
from bhive_mltf.training.scaling.limits import Traced, ceilings
from bhive_mltf.training.scaling.table import KINDS, PARTS, Row

ENTRYPOINT = (sys.executable, "-m", "bhive_mltf.training.scaling.measure")
STEPS_NAME = "steps.json"
LIMITS = ("jet_mb", "jet_gflop", "device_gb_per_s", "device_tflop_per_s")  # of a row


def measure(
    plan: TrainingPlan,
    world_sizes: Sequence[int],
    *,
    steps: int,
    warm_up: int,
    launcher: Launcher | None = None,
    kinds: Sequence[str] = KINDS,
) -> Iterator[Row]:
    """Train `steps` steps per kind and number of ranks, one after the other; yields each row when it is there.

    plan : its batch size is that of the smallest number of ranks; its directory gets a folder per measurement.
    launcher : starts the ranks of a measurement; default: on this machine.
    """
    launcher = launcher or LocalRanks(ENTRYPOINT)
    first, *more = sorted(world_sizes)
    base = _measure(_plan_of(plan, kinds[0], first, plan.batch_size), steps, warm_up, launcher)
    # one measurement for both
    yield from (replace(base, kind=kind) for kind in kinds)
    for ranks in more:
        for kind in kinds:
            size = plan.batch_size if kind == "strong" else plan.batch_size * ranks // first
            row = _measure(_plan_of(plan, kind, ranks, size), steps, warm_up, launcher)
            speedup = row.jets_per_s / base.jets_per_s
            yield replace(row, kind=kind, speedup=speedup, efficiency=speedup * first / ranks)


def _plan_of(plan: TrainingPlan, kind: str, ranks: int, batch_size: int) -> TrainingPlan:
    directory = plan.directory / "measurements" / f"{kind}_{ranks}"
    if directory.exists():
        shutil.rmtree(directory)
    return plan.model_copy(
        update={"directory": directory, "ranks_per_node": ranks, "batch_size": batch_size, "tracking": False}
    )


def _measure(plan: TrainingPlan, steps: int, warm_up: int, launcher: Launcher) -> Row:
    plan.write()
    atomic.write_json(plan.directory / STEPS_NAME, {"steps": steps, "warm_up": warm_up})
    launcher.launch(LaunchRequest(plan.directory, plan.path, plan.ranks_per_node))
    size = plan.nodes * plan.ranks_per_node
    found = [_read(plan.directory / f"times_{rank}.json") for rank in range(size)]
    means = {part: sum(times[part] for times in found) / size / steps for part in PARTS}
    slowest = max(times["total"] for times in found) / steps
    limits = {name: sum(times[name] for times in found) / size for name in LIMITS}
    return Row("", size, plan.batch_size, plan.batch_size / slowest, 1.0, 1.0, slowest, **means, **limits)


def _read(path: Path) -> dict[str, float]:
    try:
        content: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"A rank has left no times in {path}: {error.strerror}: look at its log") from error
    return content


def _rank(path: Path) -> int:
    from bhive_mltf.training import engine
    from bhive_mltf.training.monitoring.observers import Observer

    plan = TrainingPlan.read(path)
    with join_world() as world:
        watching = _Measurement()
        try:
            engine.train(plan, world, watching.build, Observer())
        except MeasuredError:
            atomic.write_json(plan.directory / f"times_{world.rank}.json", watching.close(plan, world))
    return 0


class _Measurement:
    """Puts timers into the ingredients of a training."""

    def __init__(self) -> None:
        self._timer: StepTimer | None = None
        self._traced = Traced()

    def build(self, plan: TrainingPlan, world: World) -> Ingredients:
        parts = build(plan, world)
        asked = json.loads((plan.directory / STEPS_NAME).read_text(encoding="utf-8"))
        self._timer = StepTimer(parts.model, world.device)
        timed = TimedLoader(
            parts.training, self._timer, warm_up=asked["warm_up"], steps=asked["steps"], traced=self._traced
        )
        return replace(parts, training=timed)

    def close(self, plan: TrainingPlan, world: World) -> dict[str, float]:
        assert self._timer is not None
        self._timer.close()
        precision, cost = Precision.of(plan, world.device), self._traced.cost()
        world.barrier()  # ranks that share a memory measure it together
        with float32_products(tf32=precision.tf32):
            device = ceilings(world.device, precision.autocast or precision.weights)
        limits = (cost.bytes / 1e6, cost.flops / 1e9, device.bytes / 1e9, device.flops / 1e12)
        return {**self._timer.result(), **dict(zip(LIMITS, limits, strict=True))}


class MeasuredError(Exception):
    """The steps that were to be measured are done."""


class StepTimer:
    """Times of the parts of a step (see `table`), by hooks on a model and on all optimisers of this process.

    seconds : sums over the steps since `reset`, by part; `total` is all of them without the loader.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._mark = self._last_gradient = 0.0
        self.reset()
        self._hooks: list[Any] = [
            model.register_forward_pre_hook(lambda *_: self._begin()),
            model.register_forward_hook(lambda *_: self._end_forward()),
            register_optimizer_step_pre_hook(lambda *_: self._end_backward()),
            register_optimizer_step_post_hook(lambda *_: self._end("update")),
        ]
        # after the last gradient of this rank, it waits for the sums over the ranks
        self._hooks += [
            parameter.register_post_accumulate_grad_hook(self._note_gradient)  # type: ignore[no-untyped-call]
            for parameter in model.parameters()
            if parameter.requires_grad
        ]

    def reset(self) -> None:
        """Begin anew."""
        self.seconds = dict.fromkeys((*PARTS, "total"), 0.0)

    def result(self) -> dict[str, float]:
        """Sums in seconds by part, and `total`, since `reset`."""
        found = dict(self.seconds)
        found["total"] += found["loader"]
        found["rest"] = found["total"] - sum(found[part] for part in PARTS if part != "rest")
        return found

    def close(self) -> None:
        """Remove all hooks."""
        for hook in self._hooks:
            hook.remove()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _begin(self) -> None:
        self._mark = self._now()

    def _end(self, part: str) -> None:
        now = self._now()
        self.seconds[part] += now - self._mark
        self._mark = now

    def _end_forward(self) -> None:
        self._end("forward")
        self._last_gradient = self._mark

    def _note_gradient(self, _: object) -> None:
        self._last_gradient = time.perf_counter()

    def _end_backward(self) -> None:
        now = self._now()
        # the host runs ahead of a GPU: there both count as backward
        last = now if self._device.type == "cuda" else self._last_gradient
        self.seconds["backward"] += last - self._mark
        self.seconds["communication"] += now - last
        self._mark = now


class TimedLoader:
    """A loader without an end that notes how long its batches took; MeasuredError after `steps` measured steps.

    The first `warm_up` steps are not counted, nor is the one behind them that is looked at by `traced`, if given.
    """

    def __init__(
        self, loader: Loader, timer: StepTimer, *, warm_up: int, steps: int, traced: Traced | None = None
    ) -> None:
        self._loader, self._timer, self._steps, self._traced = loader, timer, steps, traced
        # on a GPU batches are one step ahead, and the first step of several ranks has more passes than others
        self._warm_up = warm_up if traced is None else max(warm_up, 2) + 1

    def n_batches(self, epoch: int) -> int:
        """More than will be asked for, so that no epoch ends."""
        return max(self._loader.n_batches(epoch), self._warm_up + self._steps + 1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch after the other, from `epoch` on."""
        batches = self._chain(epoch, start)
        for number in range(self._warm_up + self._steps):
            if number == self._warm_up:
                self._timer.reset()
            asked = time.perf_counter()
            batch = next(batches)
            given = time.perf_counter()
            self._timer.seconds["loader"] += given - asked
            if self._traced is not None and number == self._warm_up - 1:
                with self._traced.over(len(batch)):
                    yield batch
            else:
                yield batch
            self._timer.seconds["total"] += time.perf_counter() - given
        raise MeasuredError

    def _chain(self, epoch: int, start: int) -> Iterator[Batch]:
        while True:
            yield from self._loader.epoch(epoch, start)
            epoch, start = epoch + 1, 0


if __name__ == "__main__":
    run_rank(sys.argv[1:], _rank)
