"""A training of seconds as a tracked task, in a process of its own that ends in a given way in its third step."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import mlflow.tracking.client  # noqa: F401 - what takes seconds is imported once, before processes are forked

with warnings.catch_warnings(action="ignore"):
    import law
    import luigi

from bhive_mltf.law import MLflowMixin
from bhive_mltf.ranks.distributed import World
from bhive_mltf.ranks.files import JOB_FOLDER_VARIABLE
from bhive_mltf.ranks.launcher import LocalRanks
from bhive_mltf.training import launch
from bhive_mltf.training.engine import train
from bhive_mltf.training.monitoring.mlflow_observer import MlflowObserver
from tests.helpers import standin

STRIKE = (0, 0, 2)  # rank, epoch, batch


def _send(number: int) -> None:
    os.kill(os.getpid(), number)


def _full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ENDS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "SIGKILL": lambda: _send(signal.SIGKILL),
    "SIGTERM": lambda: _send(signal.SIGTERM),
    "sys.exit": lambda: sys.exit(3),
    "full disk": _full_disk,
    # of the job that the training is a rank of
    "scancel": lambda: _send(signal.SIGTERM),
    "time limit": lambda: _send(signal.SIGUSR2),
}
# of rank 1 of two
RANK_ENDS = {"exception in rank 1": "raise", "out of memory": "kill"}


class Training(MLflowMixin, law.Task):  # type: ignore[misc]
    """What TrainingTask does with its run."""

    directory = luigi.Parameter()
    end = luigi.Parameter()
    exclude_index = True

    def local_path(self, *path: str) -> str:
        return str(Path(self.directory, *path))

    def output(self) -> law.LocalFileTarget:
        return law.LocalFileTarget(self.local_path("model_1.pt"))

    def run_tracked(self, work: Callable[[], None]) -> None:
        self.run_in_ranks(work)  # the engine owns the run

    def run(self) -> None:
        made = standin.plan(Path(self.directory), tracking=self.tracking)
        if self.end in RANK_ENDS:
            os.environ |= {"STANDIN_KILL": "1,0,2", "STANDIN_HOW": RANK_ENDS[self.end]}
            launch.launch(made.model_copy(update={"ranks_per_node": 2}), LocalRanks(standin.COMMAND))
            return
        os.environ["STANDIN_KILL"] = ",".join(map(str, STRIKE))
        standin.Haunted.strike = lambda _: ENDS[self.end]()  # type: ignore[method-assign]
        train(made, World(), standin.build, MlflowObserver())


def main(directory: str, end: str, environment: dict[str, str], tracking: bool = True) -> None:
    """Train in this process, which was forked for it."""
    os.environ.update(environment)
    launch.end_with_parent = lambda: None  # the parent is the server of forks
    output = os.open(Path(directory, "output"), os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.dup2(output, number)
    if end in ("scancel", "time limit"):
        folder = Path(directory, "slurm")
        folder.mkdir()
        os.environ[JOB_FOLDER_VARIABLE] = str(folder)
    Training(directory=directory, end=end, tracking=tracking).run()
