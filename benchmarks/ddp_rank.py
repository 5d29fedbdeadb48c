"""A rank of our engine, or a training of its own, that goes a number of steps when told to.

    python ddp_rank.py PLAN

With WORLD_SIZE it is a rank of DDP; without, it trains alone on the jets that rank $SHARE of two would have.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bhive_mltf.interface import Batch
from bhive_mltf.models.base import count_parameters
from bhive_mltf.ranks.distributed import World, join_world, size_from_environment
from bhive_mltf.training import build as ingredients
from bhive_mltf.training import engine
from bhive_mltf.training.build import Ingredients, Loader
from bhive_mltf.training.monitoring.observers import Observer
from bhive_mltf.training.plan import TrainingPlan


class Gate:
    """Batches of a loader, some at a time: a line of JSON asks for steps, another one answers with their time."""

    def __init__(self, loader: Loader, about: dict[str, Any], alone: bool) -> None:
        self._loader, self._about, self._alone = loader, about, alone

    def n_batches(self, epoch: int) -> int:  # noqa: ARG002 - of any epoch
        # more than will be asked for: the engine would end its training, and this process, behind the last
        return 10**9

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:  # noqa: ARG002 - the request says where
        total = self._loader.n_batches(epoch)
        answer = self._about
        while True:
            print(json.dumps(answer), flush=True)
            line = sys.stdin.readline()
            if not line:
                os._exit(0)
            request = json.loads(line)
            # one step more at the beginning, which is not timed: it gets back the memory that was given away
            steps = request["steps"] + 1
            if steps > total:
                raise SystemExit(f"there are {total} batches for {steps} steps: take more files, or fewer --steps")
            batches = self._loader.epoch(epoch, (request["start"] - 1) % (total - steps + 1))
            for number, batch in enumerate(islice(batches, steps)):
                if number == 1:
                    started, worked = time.perf_counter(), time.process_time()
                yield replace(batch, global_size=len(batch)) if self._alone else batch
            answer = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
            ctypes.CDLL(None).malloc_trim(0)


def build(plan: TrainingPlan, world: World) -> Ingredients:
    alone = world.size == 1
    seen = World(rank=int(os.environ["SHARE"]), size=2) if alone else world
    parts = ingredients.build(plan, seen)
    about = {"parameters": count_parameters(parts.model), "batches": parts.training.n_batches(0)}
    return replace(parts, training=Gate(parts.training, about, alone))


def main() -> None:
    os.sched_setaffinity(0, {int(os.environ["CORE"])})
    torch.set_num_threads(1)
    plan = TrainingPlan.read(Path(sys.argv[1]))
    if size_from_environment() == 1:
        plan = plan.model_copy(update={"directory": plan.directory / f"alone_{os.environ['SHARE']}"})
    with join_world() as world:
        engine.train(plan, world, build, Observer())


if __name__ == "__main__":
    main()
