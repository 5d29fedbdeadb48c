"""`--tracking True`: one MLflow run for a task, from its first command to its end, with a true status."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import luigi

from bhive_mltf.law.mixins.run import RunMixin, Status, Work
from bhive_mltf.law.parameters import technical

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FIGURES = ("*.png", "*.pdf")


class MLflowMixin(RunMixin):
    """One MLflow run per directory of outputs, whatever the number of ranks, jobs and commands.

    Inside `run()`, and wherever no task is at hand, `bhive_mltf.tracking.current()` is the run: it takes everything,
    never blocks and never fails; with several ranks only that of rank 0 keeps what it is given. The run is FINISHED
    when `run()` has returned, FAILED with the tag `failure` when it has raised, and goes on with the next command.
    """

    place = 1
    one_command = True

    tracking = technical(luigi.BoolParameter, default=True, description="track in MLflow")

    def around_run(self, work: Work) -> None:
        """See `RunMixin`."""
        from bhive_mltf.ranks import replicas

        if replicas.current().rank > 0:
            work()
        elif is_rank():
            self.run_tracked(work)
        else:
            with self.alone() as is_to_do:
                if is_to_do and self.is_left():
                    self.prepare_run()
                    around = self.run_in_ranks if self.starts_ranks() else self.run_tracked
                    around(work)

    def run_tracked(self, work: Work) -> None:
        """Do the work in this process, which owns the run."""
        from bhive_mltf import tracking
        from bhive_mltf.tracking.current_run import in_use

        with in_use(tracking.attach(self.local_path(), tracking=self.tracking)) as run:
            run.begin()
            try:
                work()
                for path in self.tracked_files():
                    run.artifact(path, "figures")
                run.finish("FINISHED")
            except BaseException as error:
                run.tags({"failure": sentence(error)})
                run.finish(status_of(error))
                raise

    def run_in_ranks(self, work: Work) -> None:
        """Let other processes do the work, the first of which owns the run while it lives."""
        try:
            work()
        except BaseException as error:
            self.close_run(status_of(error), sentence(error))
            raise

    def prepare_run(self, status: Status = "RUNNING") -> None:
        """Find or make the run, and write what is known before the work begins."""
        if not self.tracking:
            return
        from bhive_mltf import tracking

        directory = Path(self.local_path())
        directory.mkdir(parents=True, exist_ok=True)
        facts = tracking.environment.facts()
        record = tracking.prepare(
            directory,
            data_path=os.environ.get("DATA_PATH") or directory,
            run_name=self.run_name(),
            params=self.tracked_params(),
            tags={"task": self.task_family, **tracking.environment.tags(facts)},
            status=status,
        )
        if record is not None:
            with tracking.attach(directory) as run:
                run.json(facts, "environment.json")

    def announce(self) -> None:
        """The run of a job waits with it; that of a job which lives is left alone."""
        from bhive_mltf.slurm import dispatch

        if dispatch.living(Path(self.local_path())) is None:
            self.prepare_run("SCHEDULED")

    def close_run(self, status: str, reason: str = "") -> None:
        """End the run in place of its owner."""
        from bhive_mltf import tracking

        run = tracking.attach(self.local_path(), tracking=self.tracking)
        if reason:
            run.tags({"failure": reason})
        run.finish(status)

    # hooks

    def run_name(self) -> str:
        """Hook: what people call this run."""
        names = ("training_version", "model_name", "dataset_version")
        found = [str(getattr(self, name)) for name in names if hasattr(self, name)]
        return " ".join(found or [self.task_family])

    def tracked_params(self) -> Mapping[str, Any]:
        """Hook: the parameters of the run; those that decide the result."""
        return {name: getattr(self, name) for name, parameter in self.get_params() if parameter.significant}

    def tracked_files(self) -> Iterable[Path]:
        """Hook: files that the run gets once the work is done; the figures among the outputs."""
        directory = Path(self.local_path())
        return sorted(path for pattern in FIGURES for path in directory.glob(pattern))


def is_rank() -> bool:
    """Whether this process was started as one of the ranks of a task."""
    from bhive_mltf.ranks import replicas

    return replicas.VARIABLE in os.environ


def status_of(error: BaseException) -> Literal["SCHEDULED", "KILLED", "FAILED"]:
    """How a run ends whose work raised this: KILLED where somebody stopped it, SCHEDULED if its job starts it again."""
    from bhive_mltf.ranks import srun
    from bhive_mltf.ranks.signals import TrainingInterruptedError

    if isinstance(error, TrainingInterruptedError) and srun.goes_on(error.received):
        return "SCHEDULED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | TrainingInterruptedError) else "FAILED"


def sentence(error: BaseException) -> str:
    """An error in one line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
