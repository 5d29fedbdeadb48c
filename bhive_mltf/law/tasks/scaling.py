"""ScalingTask: how a training scales with the number of ranks, here."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import law
import luigi

from bhive_mltf import compat
from bhive_mltf.law.parameters import TrainingDependency, technical
from bhive_mltf.law.tasks.dataset import DatasetConstructorTask, DatasetTask
from bhive_mltf.law.tasks.training import TrainingTask

if TYPE_CHECKING:
    from bhive_mltf.training.scaling.report import ScalingRequest


class ScalingTask(TrainingDependency, DatasetTask):
    """Train some steps with several numbers of ranks, weak and strong scaling; table, figure, times of the parts."""

    world_sizes = law.CSVParameter(
        cls=luigi.IntParameter, default=(1, 2), description="numbers of ranks to measure; own path part"
    )
    steps = luigi.IntParameter(default=20, description="measured steps of each; own path part")
    warm_up_steps = technical(luigi.IntParameter, default=5, description="steps before the measured ones")

    def store_parts(self) -> tuple[str, ...]:
        ranks = "_".join(map(str, self.world_sizes))
        return (*super().store_parts(), f"batch_{self.batch_size}", f"ranks_{ranks}", f"steps_{self.steps}")

    def check(self) -> None:
        from bhive_mltf.training.scaling import table

        table.check(self.world_sizes, self.batch_size, self.steps, self.warm_up_steps)

    def check_to_run(self) -> None:
        compat.require(self.task_family, "evaluation", "matplotlib")

    def requires(self) -> law.Task | list[law.Task]:
        return [] if self.is_refused() else DatasetConstructorTask.req(self)

    def output(self) -> dict[str, law.LocalFileTarget]:
        return {key: self.local_target(f"scaling.{key}") for key in ("json", "csv", "png", "pdf")}

    def run(self) -> None:
        from bhive_mltf import tracking
        from bhive_mltf.evaluation.scaling_figure import scaling_figure
        from bhive_mltf.files.lock import DirectoryLock
        from bhive_mltf.training.scaling import report
        from bhive_mltf.training.scaling.measure import measure
        from bhive_mltf.training.scaling.table import PARTS, limits, table, write_rows

        directory = Path(self.local_path())
        with DirectoryLock(directory, wait_s=None):
            request = self.request()
            facts = tracking.environment.facts(with_torch=True)
            conditions = report.conditions(request, facts)
            caption = report.sentences(conditions)
            report.begin_run(request, conditions, facts)
            with tracking.attach(directory, tracking=self.tracking) as run:
                rows = []
                for row in measure(request.plan, request.world_sizes, steps=self.steps, warm_up=self.warm_up_steps):
                    self.say(f"{row.kind} scaling, {row.ranks} ranks: {row.jets_per_s:,.0f} jets/s")
                    rows.append(row)
                    metrics = {f"{row.kind}/{name}": getattr(row, name) for name in report.METRICS}
                    run.metrics(metrics, step=row.ranks)
                rows.sort(key=lambda row: (row.kind == "strong", row.ranks))
                figure = scaling_figure(list(map(dataclasses.asdict, rows)), PARTS, "\n".join(caption), directory)
                write_rows(rows, conditions, directory)
                self.say("\n".join(["", table(rows), "", limits(rows), "", *caption]))
                for name in (figure, figure.replace(".png", ".pdf"), "scaling.csv", "scaling.json"):
                    run.artifact(directory / name, "scaling")
                run.finish("FINISHED")

    def request(self) -> ScalingRequest:
        """What is measured, as the library takes it."""
        from bhive_mltf.training.scaling.report import ScalingRequest, plan_here

        return ScalingRequest(
            plan=plan_here(TrainingTask.req(self).plan(), Path(self.local_path())),
            dataset_version=self.dataset_version,
            world_sizes=tuple(self.world_sizes),
            steps=self.steps,
            warm_up_steps=self.warm_up_steps,
            task=self.task_family,
            data_path=os.environ["DATA_PATH"],
        )
