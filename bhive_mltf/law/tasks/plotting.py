"""ROCCurveTask: ROC curves with uncertainties, per process and for all together."""

from __future__ import annotations

from pathlib import Path

import law

from bhive_mltf.law.dispatch import dispatchable
from bhive_mltf.law.messages import refuse_early
from bhive_mltf.law.targets import DerivedDirectoryTarget
from bhive_mltf.law.tasks.inference import EvaluationBase, InferenceTask


class ROCCurveTask(EvaluationBase):
    """ROC curves and AUCs; the directory appears complete or not at all."""

    exclude_index = False

    @refuse_early(dict)
    def requires(self) -> dict[str, law.Task]:
        self.check()
        return {
            "training": self.training(),
            "inference": InferenceTask.req(self),
            "test_dataset": self.test_dataset(),
        }

    def output(self) -> law.LocalDirectoryTarget:
        return DerivedDirectoryTarget(self.local_path(), sources=self.sources())

    def job_directory(self) -> Path:
        # that of the output appears complete or not at all
        return Path(self.local_path() + "_job")

    @dispatchable
    def run(self) -> None:
        from bhive_mltf.law.support import evaluation

        evaluation.draw_roc_curves(self, Path(self.local_path()))
