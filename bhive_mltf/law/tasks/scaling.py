"""ScalingTask: how a training scales with the number of ranks, here."""

from __future__ import annotations

from pathlib import Path

import law
import luigi

from bhive_mltf.law.messages import refuse_early
from bhive_mltf.law.parameters import DatasetDependency, TrainingDependency, technical
from bhive_mltf.law.tasks.base import BaseTask
from bhive_mltf.law.tasks.dataset import DatasetConstructorTask


class ScalingTask(TrainingDependency, DatasetDependency, BaseTask):
    """Train some steps with several numbers of ranks, weak and strong scaling; table, figure, times of the parts."""

    world_sizes = law.CSVParameter(
        cls=luigi.IntParameter, default=(1, 2), description="numbers of ranks to measure; own path part"
    )
    steps = luigi.IntParameter(default=20, description="measured steps of each; own path part")
    warm_up_steps = technical(luigi.IntParameter, default=5, description="steps before the measured ones")

    exclude_index = False

    def store_parts(self) -> tuple[str, ...]:
        ranks = "_".join(map(str, self.world_sizes))
        return (*super().store_parts(), f"batch_{self.batch_size}", f"ranks_{ranks}", f"steps_{self.steps}")

    @refuse_early(list)
    def requires(self) -> law.Task:
        from bhive_mltf.training.scaling import table

        table.check(self.world_sizes, self.batch_size, self.steps, self.warm_up_steps)
        return DatasetConstructorTask.req(self)

    def output(self) -> dict[str, law.LocalFileTarget]:
        return {key: self.local_target(f"scaling.{key}") for key in ("json", "csv", "png", "pdf")}

    def run(self) -> None:
        from bhive_mltf.law.support import scaling

        scaling.measure(self, Path(self.local_path()))
