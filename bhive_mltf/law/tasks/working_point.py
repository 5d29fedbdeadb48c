"""WorkingPointTask: thresholds at given mistag rates, drawn and stored."""

from __future__ import annotations

from pathlib import Path

import law

from bhive_mltf import compat
from bhive_mltf.files.records import Record
from bhive_mltf.law.targets import DerivedFileTarget
from bhive_mltf.law.tasks.inference import EvaluationBase


class WorkingPointTask(EvaluationBase):
    """Working points: `working_point.pdf`, `wps_combined.csv`, `working_points.csv` and `.json`."""

    def requires(self) -> dict[str, law.Task]:
        # upstream's keys
        return {name: task for name, task in super().requires().items() if name != "training"}

    def check_to_run(self) -> None:
        compat.require(self.task_family, "evaluation", "matplotlib", "sklearn")

    def output(self) -> dict[str, law.LocalFileTarget]:
        path = self.local_path("working_point.pdf")
        target = DerivedFileTarget(path, record=self.local_path(), sources=self.sources())
        return {"working_points": target}

    def run(self) -> None:
        from bhive_mltf.evaluation.working_points import make_working_points
        from bhive_mltf.files.lock import DirectoryLock

        predictions, classes = self.predictions()
        directory = Path(self.local_path())
        with DirectoryLock(directory, wait_s=None):
            self.begin_anew(Record.new({}, self.sources()))
            make_working_points(predictions, classes, directory)
        with self.training_run() as run:
            run.artifact(directory / "working_point.png", "figures/working_points")
            for name in ("working_points.csv", "working_points.json", "wps_combined.csv"):
                run.artifact(directory / name, "working_points")
            run.report()
