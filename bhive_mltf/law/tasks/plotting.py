"""ROCCurveTask: ROC curves with uncertainties, per process and for all together."""

from __future__ import annotations

from pathlib import Path

from bhive_mltf import compat
from bhive_mltf.files.records import Record
from bhive_mltf.law.tasks.inference import EvaluationBase


class ROCCurveTask(EvaluationBase):
    """ROC curves and AUCs; the directory appears complete or not at all."""

    def check_to_run(self) -> None:
        compat.require(self.task_family, "evaluation", "matplotlib", "sklearn")

    def run(self) -> None:
        from bhive_mltf.evaluation.roc import make_roc_directory

        predictions, classes = self.predictions()
        directory, record = Path(self.local_path()), Record.new({}, self.sources())
        summary = make_roc_directory(predictions, classes, self.load_config(), directory, record=record)
        self.say(summary.table())
        if self.terminal_plot:
            from rich.console import Console

            from bhive_mltf.evaluation.terminal import terminal_roc

            Console().print(terminal_roc(predictions.logits, predictions.truth, classes))
        values = {
            f"auc/{process}/{label}": entry["auc"]
            for process, found in summary.auc.items()
            for label, entry in found.items()
        }
        with self.training_run() as run:
            run.metrics(values, step=0, of=self.measured_on())
            run.json(summary.auc, "roc/auc.json")
            for name in summary.figures:
                run.artifact(directory / name, "figures/roc")
            run.report()
