"""WorkingPointTask: thresholds at given mistag rates, drawn and stored."""

from __future__ import annotations

from pathlib import Path

import law

from bhive_mltf.law.dispatch import dispatchable
from bhive_mltf.law.messages import refuse_early
from bhive_mltf.law.targets import DerivedFileTarget
from bhive_mltf.law.tasks.inference import EvaluationBase, InferenceTask


class WorkingPointTask(EvaluationBase):
    """Working points: `working_point.pdf`, `wps_combined.csv`, `working_points.csv` and `.json`."""

    exclude_index = False

    @refuse_early(dict)
    def requires(self) -> dict[str, law.Task]:
        self.check()
        return {"inference": InferenceTask.req(self), "test_dataset": self.test_dataset()}

    def output(self) -> dict[str, law.LocalFileTarget]:
        path = self.local_path("working_point.pdf")
        target = DerivedFileTarget(path, record=self.local_path(), sources=self.sources())
        return {"working_points": target}

    @dispatchable
    def run(self) -> None:
        from bhive_mltf.law.support import evaluation

        evaluation.make_working_points(self, Path(self.local_path()))
