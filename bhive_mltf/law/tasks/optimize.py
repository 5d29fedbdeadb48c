"""OptimizeTask: a study over parameters of the training, with Optuna."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi

from bhive_mltf.errors import LockedError, ParameterError
from bhive_mltf.files.lock import COMMAND_FOLDER, DirectoryLock
from bhive_mltf.law.mixins.mlflow import sentence, status_of
from bhive_mltf.law.mixins.slurm import DISPATCH, SlurmDependency, law_command
from bhive_mltf.law.parameters import AttackDependency, TrainingDependency, ValDatasetDependency, technical
from bhive_mltf.law.tasks import checks
from bhive_mltf.law.tasks.dataset import DatasetConstructorTask, DatasetTask
from bhive_mltf.law.tasks.training import COMMANDS, TrainingTask

if TYPE_CHECKING:
    from bhive_mltf import tracking
    from bhive_mltf.training.studies.space import Range
    from bhive_mltf.training.studies.study import StudyRequest, Training


class OptimizeTask(SlurmDependency, AttackDependency, TrainingDependency, ValDatasetDependency, DatasetTask):
    """Trainings with parameters that Optuna proposes, for the smallest validation loss; one child run each.

    With `--slurm` each training is a job. The same command in several shells gives several workers.
    """

    study = luigi.Parameter(description="name of the study; own path part")
    space = luigi.Parameter(significant=False, description="YAML file: between what parameters may lie")
    n_trials = technical(luigi.IntParameter, default=12, description="trials of the study, all workers together")
    # not `workers`, which is luigi's own
    n_workers = technical(luigi.IntParameter, default=1, description="trainings at a time, of this command")
    prune = technical(
        luigi.BoolParameter, default=True, description="end trainings worse than the median of the others"
    )

    def store_parts(self) -> tuple[str, ...]:
        return (*super().store_parts(), f"study_{self.study}")

    def check(self) -> None:
        checks.refuse_small_numbers(n_trials=(self.n_trials, 1), n_workers=(self.n_workers, 1))
        if not self.study.replace("_", "").replace("-", "").isalnum():
            raise ParameterError(f"--study '{self.study}' becomes part of paths: use letters, digits, - and _")
        self.ranges()

    def ranges(self) -> dict[str, Range]:
        """The space of the study."""
        from bhive_mltf.training.studies import space

        significant = [name for name, parameter in TrainingTask.get_params() if parameter.significant]
        held = {"config", "dataset_version", "debug", "model_name", "training_version", "verbose", *COMMANDS}
        return space.read(self.space, [name for name in significant if name not in held])

    def requires(self) -> law.Task | list[law.Task]:
        if self.is_refused():
            return []
        base = TrainingTask.req(self)
        sets = [DatasetConstructorTask.req(self), *base.val_dataset()]
        return sets[0] if len(sets) == 1 else sets

    def output(self) -> dict[str, law.LocalFileTarget]:
        from bhive_mltf.training.studies.names import BEST, FIGURE, TABLE

        return {
            "best": self.local_target(BEST),
            "trials": self.local_target(TABLE),
            "figure": self.local_target(FIGURE),
        }

    def complete(self) -> bool:
        from bhive_mltf.training.studies.names import read_best

        return bool(super().complete()) and read_best(Path(self.local_path())).get("n_trials", 0) >= self.n_trials

    def run(self) -> None:
        from bhive_mltf import tracking
        from bhive_mltf.evaluation.study_figure import draw
        from bhive_mltf.training.studies.study import Study

        directory = Path(self.local_path())
        record = self.find_or_make_run(directory)
        study = Study(self.request(record))
        with tracking.attach(directory, tracking=self.tracking) as run:
            run.begin()
            try:
                study.run()
            except BaseException as error:
                study.write()
                run.tags({"failure": sentence(error)})
                run.finish(status_of(error))
                raise
            summary = study.write()
            draw(study.table(), directory)
            self.say(_sentence(summary))
            self.log(run, directory, summary)

    def find_or_make_run(self, directory: Path) -> tracking.RunRecord | None:
        """The one run of the study; commands that start at once would make one each."""
        from bhive_mltf import tracking

        with DirectoryLock(directory / COMMAND_FOLDER, wait_s=None):
            return tracking.prepare(
                directory,
                data_path=os.environ["DATA_PATH"],
                run_name=f"study {self.study}",
                params={"study": self.study, "space": {name: vars(found) for name, found in self.ranges().items()}},
                tags={"task": self.task_family},
                tracking=self.tracking,
            )

    def log(self, run: tracking.Run, directory: Path, summary: Mapping[str, Any]) -> None:
        """The results, into the run of the study."""
        from bhive_mltf.training.studies.names import BEST, FIGURE, TABLE

        for name in (BEST, TABLE, FIGURE):
            run.artifact(directory / name)
        best = summary["best"]
        if best is not None:
            run.metrics({"Validation Loss": best["validation_loss"]}, step=summary["n_trials"])
            run.tags({f"best.{name}": value for name, value in best["parameters"].items()})
        run.finish("FINISHED" if best is not None else "FAILED")

    def request(self, record: tracking.RunRecord | None) -> StudyRequest:
        """What this command works on, as the library takes it."""
        from bhive_mltf.training.studies.study import StudyRequest

        parent = {"MLFLOW_RUN_ID": record.run_id} if record is not None and record.run_id else {}
        return StudyRequest(
            directory=Path(self.local_path()),
            name=self.study,
            n_trials=self.n_trials,
            space=self.ranges(),
            training=self.trial,
            fixed_kwargs=self.plain_model_kwargs(),
            workers=self.n_workers,
            seed=self.seed,
            prune=self.prune,
            environment=parent,
        )

    def trial(self, number: int, values: Mapping[str, Any]) -> Training:
        """The training of a trial: a law command of its own, which goes on when it is typed again."""
        from bhive_mltf.training.studies.study import Training

        version = f"{self.training_version}_{self.study}_{number:04d}"
        dispatch = {name: getattr(self, name) for name in DISPATCH}
        task = TrainingTask.req(self, training_version=version, **{**dispatch, **values})
        directory = Path(task.local_path())
        command = law_command(task, sys.executable, exclude=())
        return Training(command, directory, lambda: self.cancel_job(directory), lambda: self.close_run(directory))

    def cancel_job(self, directory: Path) -> None:
        """End the job of a training, where it has one."""
        if not self.slurm:
            return
        from bhive_mltf.slurm import dispatch, job
        from bhive_mltf.slurm.client import Slurm

        record = dispatch.living(directory)
        if record is not None:
            dispatch.cancel(record, Slurm.of(job.with_secrets(self.profile())))

    def close_run(self, directory: Path) -> None:
        """End what a killed command has left of a training that will not go on: its job, and its run as KILLED."""
        from bhive_mltf.tracking import sync
        from bhive_mltf.training import launch

        self.cancel_job(directory)
        if self.tracking and (directory / "run.json").exists():
            with suppress(LockedError):
                launch.wait_for_ranks(directory)
            sync.sync(directory, locks=(".", COMMAND_FOLDER))


def _sentence(summary: Mapping[str, Any]) -> str:
    """What came out, in words."""
    states = ", ".join(f"{number} {state.lower()}" for state, number in summary["states"].items())
    best = summary["best"]
    if best is None:
        return f"study {summary['study']}: {states}; no trial is complete"
    values = ", ".join(f"{name} {value}" for name, value in best["parameters"].items())
    return (
        f"study {summary['study']}: {states}; best is trial {best['number']} with validation loss "
        f"{best['validation_loss']:.5f}: {values}"
    )
