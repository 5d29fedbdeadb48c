"""`python -m bhive_mltf.law.mixins.rank_process FILE`: one rank of the task that the file names.

Not a law command: luigi keeps a second one of the same words from starting.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import Any

from bhive_mltf.law.mixins.slurm import INSIDE_VARIABLE
from bhive_mltf.ranks.process import run_rank, slow_imports
from bhive_mltf.ranks.signals import INTERRUPTED_EXIT_CODE, TrainingInterruptedError


def run(path: Path) -> int:
    """Run the task as the rank that the environment names; the exit code, 75 where a signal stopped it."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, _stop)
    try:
        os.environ.setdefault(INSIDE_VARIABLE, "rank")
        # after `begin_rank`
        with slow_imports():
            from bhive_mltf.ranks.distributed import join_world

            task = read_task(path)
        with join_world() as world:
            task.run_as_rank(world)
    except TrainingInterruptedError as error:
        sys.stderr.write(f"{error}\n")
        return INTERRUPTED_EXIT_CODE
    return 0


def read_task(path: Path) -> Any:
    """The task that the command described."""
    content = json.loads(path.read_text(encoding="utf-8"))
    sys.path += [entry for entry in content["path"] if entry not in sys.path]
    cls = attrgetter(content["name"])(importlib.import_module(content["module"]))
    return cls.from_str_params(content["parameters"])


class StoppedError(TrainingInterruptedError):
    """A signal stopped this rank, wherever it was: what the task had saved by then is what is left."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"stopped by {received.name}: the same command goes on", received=received)


def _stop(number: int, _: FrameType | None) -> None:
    for each in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(each, signal.SIG_IGN)
    raise StoppedError(signal.Signals(number))


if __name__ == "__main__":
    run_rank(sys.argv[1:], run)
