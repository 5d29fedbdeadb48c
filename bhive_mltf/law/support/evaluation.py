"""Predictions, ROC curves and working points, and what of them goes into the training's MLflow run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bhive_mltf import tracking
from bhive_mltf.errors import ParameterError
from bhive_mltf.files.lock import COMMAND_FOLDER, DirectoryLock
from bhive_mltf.files.records import Record
from bhive_mltf.law import messages
from bhive_mltf.law.support.training import log_dataset

if TYPE_CHECKING:
    from bhive_mltf.evaluation.inference import InferencePlan
    from bhive_mltf.evaluation.predictions import Predictions
    from bhive_mltf.law.tasks.inference import EvaluationBase, InferenceTask
    from bhive_mltf.law.tasks.plotting import ROCCurveTask
    from bhive_mltf.law.tasks.working_point import WorkingPointTask


def infer(task: InferenceTask, directory: Path) -> None:
    """Predict each jet of the test set with the best model of the training."""
    from bhive_mltf.evaluation import inference, prediction_files

    plan = _plan(task, directory)
    with DirectoryLock(directory, wait_s=None):
        dataset = plan.open()
        model = plan.model()
        classes = [name for name, _ in model.inputs.classes]
        found = inference.infer(plan, dataset, model)
        _begin_anew(task, directory, Record.new({**task.result_parameters(), "classes": classes}, task.sources()))
        prediction_files.write(found, directory, dataset, classes)
    is_training_set = task.test_dataset_version == task.dataset_version
    if is_training_set:
        messages.warn_once(
            f"the test set is the training set ({task.dataset_version}): give --test-dataset-version and "
            "--test-filelist"
        )
    task.say(
        f"{len(dataset)} jets predicted in {found.seconds:.1f} s, loss {found.loss:.4f}, accuracy {found.accuracy:.4f}"
    )
    with run_of(task) as run:
        log_dataset(run, dataset, task.test_dataset_version, "test")
        run.metrics({"Test Loss": found.loss, "Test Accuracy": found.accuracy}, step=0, of=evaluated(task))
        run.tags({"test_is_training_set": is_training_set})


def _plan(task: InferenceTask, directory: Path) -> InferencePlan:
    from bhive_mltf.attacks.options import AttackOptions
    from bhive_mltf.evaluation.inference import InferencePlan

    names = ("model_name", "batch_size", "n_threads", "seed", "ranks_per_node", "threads_per_rank", "deterministic")
    return InferencePlan(
        directory=directory.absolute(),
        dataset=task.test_dataset().local_path(),
        dataset_sidecar=directory.absolute() / "dataset",
        training=task.training().local_path(),
        config=task.load_config(),
        model_kwargs=task.plain_model_kwargs(),
        unmatched=_unmatched(task),
        precision=task.testing_precision,
        attack=AttackOptions.of(task, "test_attack"),
        **{name: getattr(task, name) for name in names},
    )


def _begin_anew(task: InferenceTask | WorkingPointTask, directory: Path, record: Record) -> None:
    """Remove outputs of an older generation before the new record can be taken for theirs."""
    for target in task.output().values():
        Path(target.path).unlink(missing_ok=True)
    record.write(directory)


def run_of(task: EvaluationBase) -> tracking.Run:
    """The MLflow run of the training that a task evaluates; closed, should the training's end have been a kill."""
    directory = Path(task.training().local_path())
    if task.tracking:
        tracking.close_abandoned(directory, "FINISHED", (".", COMMAND_FOLDER))
    return tracking.attach(directory, tracking=task.tracking)


def evaluated(task: EvaluationBase) -> str:
    """What figures of a test set are of: this set, and this generation of the training."""
    from bhive_mltf.law.tasks.inference import InferenceTask

    record = Record.read(task.training().local_path())
    return "/".join((record.generation if record else "", *InferenceTask.req(task).store_parts()))


def draw_roc_curves(task: ROCCurveTask, directory: Path) -> None:
    """ROC curves of the predictions, into the directory and the run."""
    from bhive_mltf.evaluation.roc import make_roc_directory

    predictions, classes = _predictions(task)
    record = Record.new({}, task.sources())
    summary = make_roc_directory(predictions, classes, task.load_config(), directory, record=record)
    task.say(table(summary.auc))
    if task.terminal_plot:
        _draw_in_terminal(predictions, classes)
    values = {
        f"auc/{process}/{label}": entry["auc"]
        for process, found in summary.auc.items()
        for label, entry in found.items()
    }
    with run_of(task) as run:
        run.metrics(values, step=0, of=evaluated(task))
        run.json(summary.auc, "roc/auc.json")
        for name in summary.figures:
            run.artifact(directory / name, "figures/roc")


def _draw_in_terminal(predictions: Predictions, classes: list[str]) -> None:
    from rich.console import Console

    from bhive_mltf.evaluation.terminal import terminal_roc

    Console().print(terminal_roc(predictions.logits, predictions.truth, classes))


def make_working_points(task: WorkingPointTask, directory: Path) -> None:
    """Working points of the predictions, into the directory and the run."""
    from bhive_mltf.evaluation.working_points import make_working_points as make

    predictions, classes = _predictions(task)
    with DirectoryLock(directory, wait_s=None):
        _begin_anew(task, directory, Record.new({}, task.sources()))
        make(predictions, classes, directory)
    with run_of(task) as run:
        run.artifact(directory / "working_point.png", "figures/working_points")
        for name in ("working_points.csv", "working_points.json", "wps_combined.csv"):
            run.artifact(directory / name, "working_points")


def _unmatched(task: InferenceTask) -> str:
    """What the training did with jets of no class, unless the command says otherwise."""
    record = Record.read(task.training().local_path())
    if record is None or task.unmatched != task.defaults(["unmatched"])["unmatched"]:
        return str(task.unmatched)
    return str(record.parameters.get("unmatched", task.unmatched))


def _predictions(task: EvaluationBase) -> tuple[Predictions, list[str]]:
    from bhive_mltf.evaluation import prediction_files
    from bhive_mltf.law.tasks.inference import InferenceTask

    directory = Path(InferenceTask.req(task).local_path())
    record = Record.read(directory)
    if record is None or "classes" not in record.parameters:
        raise ParameterError(f"{directory} does not record the model's classes: remove it and predict again")
    return prediction_files.read_predictions(directory), list(record.parameters["classes"])


def table(auc: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """AUCs as lines of text, narrow enough for any terminal."""
    lines = ["", "AUC"]
    for process, found in auc.items():
        lines.append(f"  {process}")
        lines += [f"    {label:<22} {entry['auc']:.4f} +- {entry['error']:.4f}" for label, entry in found.items()]
    return "\n".join(lines)
