"""ExportTask: the model of a training as ONNX, compared with itself, with all that another program needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import luigi

from bhive_mltf.errors import ParameterError
from bhive_mltf.files.records import Record
from bhive_mltf.law.parameters import technical
from bhive_mltf.law.tasks import checks
from bhive_mltf.law.tasks.base import BaseTask
from bhive_mltf.law.tasks.inference import EvaluationBase, InferenceTask

if TYPE_CHECKING:
    from bhive_mltf.evaluation.export.bundle import ExportRequest


class ExportTask(EvaluationBase):
    """Write ONNX file, its description, a scorer and an MLflow model; the directory appears complete or not at all.

    The ONNX file is compared with the model on jets of the test set.
    """

    weights = luigi.ChoiceParameter(
        default="best", choices=["best", "last"], description="which model; own path part unless 'best'"
    )
    n_compared = technical(luigi.IntParameter, default=1000, description="jets of the comparison")
    register = technical(luigi.Parameter, default="", description="name in the MLflow model registry; empty: none")
    alias = technical(luigi.Parameter, default="", description="alias of the registered version, e.g. champion")

    def store_parts(self) -> tuple[str, ...]:
        parts = super().store_parts()
        return parts if self.weights == "best" else (*parts, f"weights_{self.weights}")

    def check(self) -> None:
        super().check()
        checks.refuse_small_numbers(n_compared=(self.n_compared, 1))
        if self.alias and not self.register:
            raise ParameterError(f"--alias {self.alias} is of a registered model: add --register NAME")

    def evaluated(self) -> dict[str, BaseTask]:
        return {"training": self.training(), "test_dataset": self.test_dataset()}

    def run(self) -> None:
        from bhive_mltf.evaluation.export import bundle

        directory = Path(self.local_path())
        found = bundle.make(self.request(), directory, Record.new(self.result_parameters(), self.sources()))
        self.say(
            f"{directory / bundle.MODEL_NAME}: largest difference from the model {found.largest:.1e} on {found.n_jets} "
            "jets"
        )
        with self.training_run() as run:
            run.saved_model(
                directory / bundle.MLFLOW_FOLDER,
                f"onnx_{self.weights}_model",
                metrics={"export/largest_difference": found.largest},
                tags={"weights": self.weights},
                register=self.register,
                alias=self.alias,
            )
            run.artifact(directory / bundle.DESCRIPTION, "export")

    def request(self) -> ExportRequest:
        """What is exported, as the library takes it."""
        from bhive_mltf.evaluation.export.bundle import ExportRequest
        from bhive_mltf.tracking import RunRecord

        training = self.training()
        directory = Path(training.local_path())
        record, run = Record.read(directory), RunRecord.read(directory)
        file = "best_model.pt" if self.weights == "best" else f"model_{training.last_number()}.pt"
        plan = InferenceTask.req(self).plan()
        return ExportRequest(
            plan=plan.model_copy(update={"dataset_sidecar": self.job_directory() / "dataset"}),
            weights=file,
            n_compared=self.n_compared,
            training={
                "directory": str(directory),
                "run_id": run.run_id if run is not None else "",
                "generation": record.generation if record is not None else "",
                "weights": file,
            },
        )

    def result_parameters(self) -> dict[str, Any]:
        """What decides the file and is not in the path."""
        return {"unmatched": self.unmatched}
