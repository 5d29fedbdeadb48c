"""InferenceTask: predictions of the best model on the test set, in input order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import law

from bhive_mltf.attacks.options import SETTINGS, AttackOptions
from bhive_mltf.law.dispatch import SlurmDependency, dispatchable
from bhive_mltf.law.messages import refuse_early
from bhive_mltf.law.parameters import (
    AttackDependency,
    DatasetDependency,
    TestAttackDependency,
    TestDatasetDependency,
    TrainingDependency,
)
from bhive_mltf.law.targets import DerivedFileTarget
from bhive_mltf.law.tasks import checks
from bhive_mltf.law.tasks.base import BaseTask
from bhive_mltf.law.tasks.dataset import DatasetConstructorTask
from bhive_mltf.law.tasks.training import TrainingTask


class EvaluationBase(
    SlurmDependency,
    TestAttackDependency,
    AttackDependency,
    TrainingDependency,
    TestDatasetDependency,
    DatasetDependency,
    BaseTask,
):
    """What all tasks after the training share."""

    exclude_index = True

    def training(self) -> TrainingTask:
        """The training that is evaluated."""
        return TrainingTask.req(self)

    def test_dataset(self) -> DatasetConstructorTask:
        """The set that it is evaluated on."""
        return DatasetConstructorTask.req(
            self, dataset_version=self.test_dataset_version, filelist=self.test_filelist or self.same_filelist()
        )

    def same_filelist(self) -> str:
        """The training list, when the test set is the training set."""
        return self.filelist if self.test_dataset_version == self.dataset_version else ""

    def evaluated(self) -> dict[str, BaseTask]:
        """The results that this one is made from, by the name under which its record knows them."""
        return {"training": self.training(), "test_dataset": self.test_dataset(), "inference": InferenceTask.req(self)}

    def sources(self) -> dict[str, str]:
        """Directories of the results that this one is made from."""
        return {name: task.local_path() for name, task in self.evaluated().items()}

    @refuse_early(bool)
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
        checks.refuse_unknown_precision(self.testing_precision)
        checks.refuse_two_lists_for_one_version(self)


class InferenceTask(EvaluationBase):
    """Predict each jet of the test set once."""

    exclude_index = False

    @refuse_early(dict)
    def requires(self) -> dict[str, law.Task]:
        self.check()
        return {"training": self.training(), "test_dataset": self.test_dataset()}

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

    @dispatchable
    def run(self) -> None:
        from bhive_mltf.law.support import evaluation

        evaluation.infer(self, Path(self.local_path()))

    def result_parameters(self) -> dict[str, Any]:
        """What decides the predictions and is not in the path."""
        names = ("testing_precision", "unmatched", *(f"test_attack_{name}" for name in SETTINGS))
        return {name: getattr(self, name) for name in names}
