"""InferenceTask: predictions of the best model on the test set, in input order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import law

from bhive_mltf.attacks.options import SETTINGS, AttackOptions
from bhive_mltf.errors import ParameterError
from bhive_mltf.files.records import Record
from bhive_mltf.law import messages
from bhive_mltf.law.mixins import SlurmMixin
from bhive_mltf.law.parameters import (
    AttackDependency,
    TestAttackDependency,
    TestDatasetDependency,
    TrainingDependency,
)
from bhive_mltf.law.targets import DerivedDirectoryTarget, DerivedFileTarget
from bhive_mltf.law.tasks import checks
from bhive_mltf.law.tasks.base import BaseTask
from bhive_mltf.law.tasks.dataset import DatasetConstructorTask, DatasetTask
from bhive_mltf.law.tasks.training import TrainingTask

if TYPE_CHECKING:
    from bhive_mltf import tracking
    from bhive_mltf.evaluation.inference import InferencePlan
    from bhive_mltf.evaluation.predictions import Predictions

PRECISIONS = ("float32", "float16", "float64")


class EvaluationBase(
    SlurmMixin,
    TestAttackDependency,
    AttackDependency,
    TrainingDependency,
    TestDatasetDependency,
    DatasetTask,
):
    """What all tasks after the training share."""

    exclude_index = True

    def training(self) -> TrainingTask:
        """The training that is evaluated."""
        return TrainingTask.req(self)

    def test_dataset(self) -> DatasetConstructorTask:
        """The set that it is evaluated on."""
        is_another = self.test_dataset_version != self.dataset_version
        return DatasetConstructorTask.req(
            self,
            dataset_version=self.test_dataset_version,
            filelist=self.test_filelist or ("" if is_another else self.filelist),
            is_test_set=is_another,
        )

    def recorded(self, name: str) -> str:
        return self.training().recorded(name)

    def evaluated(self) -> dict[str, BaseTask]:
        """The results that this one is made from, by the name under which its record knows them."""
        return {"training": self.training(), "inference": InferenceTask.req(self), "test_dataset": self.test_dataset()}

    def requires(self) -> dict[str, law.Task]:
        return {} if self.is_refused() else dict(self.evaluated())

    def output(self) -> Any:
        """The whole directory, which appears complete or not at all; or files of it by name."""
        return DerivedDirectoryTarget(self.local_path(), sources=self.sources())

    def job_directory(self) -> Path:
        is_whole = isinstance(self.output(), law.LocalDirectoryTarget)
        return Path(f"{self.local_path()}_job" if is_whole else self.local_path())

    def sources(self) -> dict[str, str]:
        """Directories of the results that this one is made from."""
        return {name: task.local_path() for name, task in self.evaluated().items()}

    def complete(self) -> bool:
        """Done, and so is what it was made from, as far as that still exists; records are held against the command."""
        if not super().complete():
            return False
        self.check()
        kept = [task for task in self.evaluated().values() if Path(task.local_path()).exists()]
        if not all(task.complete() for task in kept):
            return False
        self.hold_against_record()
        return True

    def check(self) -> None:
        """Refuse what can be seen to be wrong before anything runs."""
        AttackOptions.of(self, "test_attack")
        if self.testing_precision not in PRECISIONS:
            raise ParameterError(
                f"--testing-precision {self.testing_precision} does not exist: choose one of {', '.join(PRECISIONS)}"
            )
        if self.dataset_version == self.test_dataset_version:
            checks.refuse_two_lists_for_one_version(
                self.dataset_version, self.filelist, self.test_filelist, self.test_dataset().local_path()
            )

    def begin_anew(self, record: Record) -> None:
        """Remove outputs of an older generation before the new record can be taken for theirs."""
        for target in self.output().values():
            Path(target.path).unlink(missing_ok=True)
        record.write(self.local_path())

    def predictions(self) -> tuple[Predictions, list[str]]:
        """What the inference found, and the names of the model's classes."""
        from bhive_mltf.evaluation import prediction_files

        directory = Path(InferenceTask.req(self).local_path())
        record = Record.read(directory)
        if record is None or "classes" not in record.parameters:
            raise ParameterError(f"{directory} does not record the model's classes: remove it and predict again")
        return prediction_files.read_predictions(directory), list(record.parameters["classes"])

    def training_run(self) -> tracking.Run:
        """The MLflow run of the training; closed, should the training's end have been a kill."""
        from bhive_mltf import tracking
        from bhive_mltf.files.lock import COMMAND_FOLDER

        directory = Path(self.training().local_path())
        if self.tracking:
            tracking.close_abandoned(directory, "FINISHED", (".", COMMAND_FOLDER))
        return tracking.attach(directory, tracking=self.tracking)

    def measured_on(self) -> str:
        """What figures of a test set are of: this set, and this generation of the training."""
        record = Record.read(self.training().local_path())
        return "/".join((record.generation if record else "", *InferenceTask.req(self).store_parts()))


class InferenceTask(EvaluationBase):
    """Predict each jet of the test set once."""

    def output(self) -> dict[str, law.LocalFileTarget]:
        files = {
            "prediction": "prediction.npy",
            "process": "process.npy",
            "truth": "truth.npy",
            "kinematics": "kinematics.npy",
            "inference_time": "inference_time.npy",
            "inference_metrics": "inference_metrics.npz",
            "output_root": "output.root",
        }
        sources = self.sources()
        return {
            key: DerivedFileTarget(self.local_path(name), record=self.local_path(), sources=sources)
            for key, name in files.items()
        }

    def evaluated(self) -> dict[str, BaseTask]:
        return {"training": self.training(), "test_dataset": self.test_dataset()}

    def run(self) -> None:
        from bhive_mltf.evaluation import inference, prediction_files
        from bhive_mltf.files.lock import DirectoryLock
        from bhive_mltf.training.launch import log_dataset

        directory, plan = Path(self.local_path()), self.plan()
        with DirectoryLock(directory, wait_s=None):
            dataset, model = plan.open(), plan.model()
            classes = [name for name, _ in model.inputs.classes]
            found = inference.infer(plan, dataset, model)
            self.begin_anew(Record.new({**self.result_parameters(), "classes": classes}, self.sources()))
            prediction_files.write(found, directory, dataset, classes)
        is_training_set = self.test_dataset_version == self.dataset_version
        if is_training_set:
            messages.warn_once(
                f"the test set is the training set ({self.dataset_version}): give --test-dataset-version and "
                "--test-filelist"
            )
        self.say(
            f"{len(dataset)} jets predicted in {found.seconds:.1f} s, loss {found.loss:.4f}, accuracy "
            f"{found.accuracy:.4f}"
        )
        metrics = {"Test Loss": found.loss, "Test Accuracy": found.accuracy}
        with self.training_run() as run:
            log_dataset(run, dataset, self.test_dataset_version, "test")
            run.metrics(metrics, step=0, of=self.measured_on())
            run.tags({"test_is_training_set": is_training_set})

    def plan(self) -> InferencePlan:
        """What is predicted, as the library takes it."""
        from bhive_mltf.evaluation.inference import InferencePlan

        directory = Path(self.local_path()).absolute()
        names = ("model_name", "batch_size", "n_threads", "seed", "ranks_per_node", "threads_per_rank", "deterministic")
        return InferencePlan(
            directory=directory,
            dataset=Path(self.test_dataset().local_path()),
            dataset_sidecar=directory / "dataset",
            training=Path(self.training().local_path()),
            config=self.load_config(),
            model_kwargs=self.plain_model_kwargs(),
            unmatched=str(self.training().effective("unmatched")),
            precision=self.testing_precision,
            attack=AttackOptions.of(self, "test_attack"),
            **{name: getattr(self, name) for name in names},
        )

    def result_parameters(self) -> dict[str, Any]:
        """What decides the predictions and is not in the path."""
        names = ("testing_precision", "unmatched", *(f"test_attack_{name}" for name in SETTINGS))
        return {name: getattr(self, name) for name in names}
