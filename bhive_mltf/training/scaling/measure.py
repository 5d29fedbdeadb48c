"""How a training scales: the same steps with several numbers of ranks.

`python -m bhive_mltf.training.scaling.measure PLAN` is one rank of one measurement.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bhive_mltf.errors import TrainingError
from bhive_mltf.files import atomic
from bhive_mltf.ranks.distributed import World, join_world
from bhive_mltf.ranks.launcher import Launcher, LaunchRequest, LocalRanks
from bhive_mltf.ranks.process import run_rank
from bhive_mltf.training.build import Ingredients, build
from bhive_mltf.training.plan import TrainingPlan
from bhive_mltf.training.scaling.stopwatch import MeasuredError, Stopwatch, TimedLoader
from bhive_mltf.training.scaling.table import KINDS, PARTS, Row

ENTRYPOINT = (sys.executable, "-m", "bhive_mltf.training.scaling.measure")
STEPS_NAME = "steps.json"


def measure(
    plan: TrainingPlan, world_sizes: Sequence[int], *, steps: int, warm_up: int, launcher: Launcher | None = None
) -> Iterator[Row]:
    """Train `steps` steps per kind and number of ranks, one after the other; yields each row when it is there.

    plan : its batch size is that of the smallest number of ranks; its directory gets a folder per measurement.
    launcher : starts the ranks of a measurement; default: on this machine.
    """
    launcher = launcher or LocalRanks(ENTRYPOINT)
    first, *more = sorted(world_sizes)
    base = _measure(_plan_of(plan, KINDS[0], first, plan.batch_size), steps, warm_up, launcher)
    # one measurement for both
    yield from (replace(base, kind=kind) for kind in KINDS)
    for ranks in more:
        for kind in KINDS:
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
    return Row("", size, plan.batch_size, plan.batch_size / slowest, 1.0, 1.0, slowest, **means)


def _read(path: Path) -> dict[str, float]:
    try:
        content: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"A rank has left no times in {path}: {error.strerror}; look at its log.") from error
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
            atomic.write_json(plan.directory / f"times_{world.rank}.json", watching.close())
    return 0


class _Measurement:
    """Puts a stopwatch into the ingredients of a training."""

    def __init__(self) -> None:
        self._watch: Stopwatch | None = None

    def build(self, plan: TrainingPlan, world: World) -> Ingredients:
        parts = build(plan, world)
        asked = json.loads((plan.directory / STEPS_NAME).read_text(encoding="utf-8"))
        self._watch = Stopwatch(parts.model, world.device).__enter__()
        timed = TimedLoader(parts.training, self._watch, warm_up=asked["warm_up"], steps=asked["steps"])
        return replace(parts, training=timed)

    def close(self) -> dict[str, float]:
        assert self._watch is not None
        self._watch.__exit__(None, None, None)
        return self._watch.result()


if __name__ == "__main__":
    run_rank(sys.argv[1:], _rank)
