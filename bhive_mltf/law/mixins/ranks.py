"""`--ranks-per-node N`: the `run` of a task in several processes at once, which train copies of one model."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luigi

from bhive_mltf.errors import ParameterError
from bhive_mltf.files import atomic
from bhive_mltf.law.mixins.mlflow import is_rank
from bhive_mltf.law.mixins.run import RunMixin, Work, given_parameters, refuse_nodes
from bhive_mltf.law.mixins.slurm import DISPATCH
from bhive_mltf.law.parameters import technical

if TYPE_CHECKING:
    from bhive_mltf.ranks.distributed import World
    from bhive_mltf.ranks.replicas import Replicas

# Folder for what ranks above 0 write; made and removed by the command that starts them.
SCRATCH_VARIABLE = "BHIVE_MLTF_RANK_SCRATCH"


class RanksMixin(RunMixin):
    """`run()` in several ranks: one process each, started by the launcher of this package or by srun.

    `self.ranks` is what this process is to the others, see `bhive_mltf.ranks.replicas`. What ranks above 0 write below
    `local_path()` goes to a folder that is removed in the end; they find copies of the files there that were in the
    directory at the start. A rank that fails ends all.
    """

    place = 2
    one_command = True

    ranks_per_node = technical(
        luigi.IntParameter,
        default=1,
        description="processes per node that train together; 0: one per visible GPU, else one",
    )
    nodes = technical(luigi.IntParameter, default=1, description="machines; several only as a job")
    threads_per_rank = technical(luigi.IntParameter, default=0, description="compute threads of a rank; 0: automatic")

    # of a rank above 0: the folder in place of that of the outputs
    _aside: Path | None = None
    _finds_path = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if issubclass(cls, luigi.Task) and "local_path" in vars(cls):
            cls.local_path = _redirected(vars(cls)["local_path"])  # type: ignore[method-assign]

    @property
    def ranks(self) -> Replicas:
        """What this process is to the others that train with it."""
        from bhive_mltf.ranks import replicas

        return replicas.current()

    def local_path(self, *path: str) -> str:
        """A path below the outputs; that of a rank above 0 in a folder of its own."""
        return _of_this_rank(self, super().local_path, path)

    def around_run(self, work: Work) -> None:
        """See `RunMixin`."""
        if is_rank():
            work()
            # rank 0 is done when all are
            self.ranks.barrier()
            return
        refuse_nodes(self.nodes)
        if not self.starts_ranks():
            work()
            return
        with self.alone() as is_to_do:
            if is_to_do:
                self.launch_ranks()

    def starts_ranks(self) -> bool:
        """Whether the work is done by other processes, which this one starts."""
        return not is_rank() and self.n_ranks() > 1

    def n_ranks(self) -> int:
        """Ranks on this machine."""
        from bhive_mltf.ranks.gpus import ranks_here

        if self.ranks_per_node < 0:
            raise ParameterError(f"--ranks-per-node {self.ranks_per_node}: it must be 0 or more")
        return ranks_here(int(self.ranks_per_node))

    def launch_ranks(self) -> None:
        """Start the ranks here and wait for them.

        Raises
        ------
        RankFailedError : a rank failed, all others have ended; names the rank and its reason.
        TrainingInterruptedError : a signal stopped the ranks.
        """
        from bhive_mltf.ranks.launcher import LaunchRequest, LocalRanks

        directory, plan = Path(self.local_path()).absolute(), self.rank_file()
        assert plan is not None
        launcher = LocalRanks((sys.executable, "-m", self.rank_module), what=self.task_family)
        with tempfile.TemporaryDirectory(prefix="bhive_mltf_ranks_") as scratch:
            os.environ[SCRATCH_VARIABLE] = scratch
            try:
                launcher.launch(LaunchRequest(directory, plan, self.n_ranks()))
            finally:
                del os.environ[SCRATCH_VARIABLE]

    def rank_file(self) -> Path | None:
        """Write what each rank has to know of this task, in the directory of its outputs."""
        directory = Path(self.local_path()).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        cls = type(self)
        if cls.__module__ == "__main__":
            raise ParameterError(
                f"{cls.__name__} is defined in the script that was started, which ranks cannot import: move it to a "
                "module"
            )
        content: dict[str, Any] = {
            "module": cls.__module__,
            "name": cls.__qualname__,
            "parameters": given_parameters(self, {*DISPATCH}),
            "path": [entry for entry in map(os.path.abspath, sys.path) if os.path.isdir(entry)],  # noqa: PTH112
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        # a job that waits keeps its own, whatever a later command is given
        path = directory / f"rank_task_{digest[:10]}.json"
        atomic.write_json(path, content)
        return path

    def run_as_rank(self, world: World) -> None:
        """Run in this process, one of the ranks of `world`."""
        from bhive_mltf.ranks import replicas
        from bhive_mltf.ranks.distributed import set_threads

        replicas.join(world)
        set_threads(self.threads_per_rank, world)
        if world.is_first:
            world.barrier()
            self.run()
            return
        scratch = Path(os.environ.get(SCRATCH_VARIABLE) or tempfile.mkdtemp(prefix="bhive_mltf_ranks_"))
        aside = scratch / f"rank_{world.rank}"
        try:
            _copy_files(Path(self.local_path()), aside)
            self._aside = aside
            world.barrier()
            self.run()
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _redirected(local_path: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(local_path)
    def wrapper(self: RanksMixin, *path: str) -> str:
        return _of_this_rank(self, functools.partial(local_path, self), path)

    return wrapper


def _of_this_rank(task: RanksMixin, local_path: Callable[..., str], path: tuple[str, ...]) -> str:
    """The path that `local_path` gives, in the rank's own folder if it has one; once, however many classes ask."""
    if task._aside is None or task._finds_path:
        return local_path(*path)
    task._finds_path = True
    try:
        base, found = local_path(), local_path(*path)
    finally:
        task._finds_path = False
    return f"{task._aside}{found.removeprefix(base)}" if found.startswith(base) else found


def _copy_files(directory: Path, to: Path) -> None:
    """Copies of what was there before, such as the checkpoint to go on from, for a rank that must not write there."""
    to.mkdir(parents=True)
    for path in directory.iterdir() if directory.exists() else ():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, to)
