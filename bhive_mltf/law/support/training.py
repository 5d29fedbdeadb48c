"""Running a training: its record, its MLflow run, its ranks, its figures."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from bhive_mltf import tracking
from bhive_mltf.errors import RecordMismatchError
from bhive_mltf.files.lock import COMMAND_FOLDER, STALE_AFTER_S, DirectoryLock
from bhive_mltf.files.records import Record, compare
from bhive_mltf.law.support import commands, jobs
from bhive_mltf.ranks.process import end_with_parent

if TYPE_CHECKING:
    from bhive_mltf.data.dataset import Dataset
    from bhive_mltf.law.tasks.training import TrainingTask
    from bhive_mltf.training.plan import TrainingPlan

# Where a training on ROOT files keeps the manifest of what it read.
ROOT_RECORD = "root_files"
RANKS_END_S = STALE_AFTER_S + 30.0
COMMANDS = ("resume_training", "resume_epoch", "extend_training")


def train(task: TrainingTask, directory: Path) -> None:
    """Train the task's plan in `directory`, from where an earlier command left off.

    Raises
    ------
    RecordMismatchError : the directory was made with other parameters.
    TrainingError : the training cannot go on; the same command continues it.
    """
    from bhive_mltf.ranks.signals import TrainingInterruptedError
    from bhive_mltf.training.launch import launch

    with one_command(directory):
        jobs.refuse_while_a_job_lives(directory)
        wait_for_ranks(directory)
        if task.complete():
            return  # by a command that was waited for
        plan = prepare(task, directory)
        try:
            launch(plan)
        except BaseException as error:
            # rank 0 may be gone without a word: the command closes the run in its place
            stopped = isinstance(error, KeyboardInterrupt | TrainingInterruptedError)
            status = "KILLED" if stopped else "FAILED"
            tracking.attach(directory, tracking=plan.tracking).finish(status)
            raise
        draw(plan)


@contextmanager
def one_command(directory: Path) -> Iterator[None]:
    """One command at a time changes a training; another one waits, and says for whom."""
    end_with_parent()
    with DirectoryLock(directory / COMMAND_FOLDER, wait_s=None):
        yield


def wait_for_ranks(directory: Path) -> None:
    """Ranks of a command that was just killed need a moment to end."""
    with DirectoryLock(directory, wait_s=RANKS_END_S):
        pass


def prepare(
    task: TrainingTask, directory: Path, status: Literal["RUNNING", "SCHEDULED"] = "RUNNING", **values: int
) -> TrainingPlan:
    """Carry out what the command changes, write the records, make the MLflow run; the plan to train.

    values : fields of the plan that whoever starts the ranks decides.
    """
    from bhive_mltf.training.build import open_validation_set

    changed = commands.carry_out(task, directory)
    record = _record(task, directory, changed)
    plan = task.plan().model_copy(update={**_recorded_settings(record), "generation": record.generation, **values})
    dataset = _open(plan)
    _prepare_run(task, plan, dataset, open_validation_set(plan), status)
    return plan


def _record(task: TrainingTask, directory: Path, changed: bool) -> Record:
    """What the directory was made with; a new generation when this command changes the training."""
    from bhive_mltf.training.checkpointing import checkpoint

    asked = task.result_parameters()
    record = Record.read(directory)
    # a command that failed before its first checkpoint binds nobody
    if record is None or not (checkpoint.epoch_files(directory) or checkpoint.step_files(directory)):
        begun = Record.new({**asked, "extend_training": task.extend_training})
        if record is not None and (changed or record.parameters != begun.parameters):
            _set_run_aside(directory, record)
        begun.write(directory)
        return begun
    if record.parameters["config"] != asked.pop("config"):
        raise RecordMismatchError(
            f"{directory} was trained with another config of the name '{task.config}': give the training another "
            "--training-version, or --restart True"
        )
    compare(record.parameters, asked, task.defaults(asked), directory)
    if changed or record.parameters.get("extend_training") != task.extend_training:
        record = Record.new({**record.parameters, "extend_training": task.extend_training})
        record.write(directory)
    return record


def _set_run_aside(directory: Path, record: Record) -> None:
    """Another training begins here: what MLflow holds belongs to the one before, and so does the journal."""
    aside = directory / "aside" / f"run_{record.generation}"
    for name in ("run.json", "journal"):
        if (directory / name).exists():
            aside.mkdir(parents=True, exist_ok=True)
            (directory / name).rename(aside / name)
    if aside.exists():
        from bhive_mltf.tracking import sync

        sync.sync(aside)


def _recorded_settings(record: Record) -> dict[str, object]:
    """The recorded values hold where the command leaves a parameter at its default."""
    settings = {name: value for name, value in record.parameters.items() if name != "config"}
    return {**settings, "betas": tuple(settings["betas"])}


def _open(plan: TrainingPlan) -> Dataset:
    """The training set, opened once before the ranks do.

    They then find the manifest of an upstream set, or what ROOT files were converted to, ready; the latter lives as
    long as the returned object.
    """
    from bhive_mltf.training.build import open_training_set

    dataset = open_training_set(plan)
    if plan.root_files:
        dataset.manifest.write(plan.directory / ROOT_RECORD)
    return dataset


def _prepare_run(
    task: TrainingTask,
    plan: TrainingPlan,
    dataset: Dataset,
    validation_set: Dataset | None,
    status: Literal["RUNNING", "SCHEDULED"],
) -> None:
    """Find or make the MLflow run, and log what is known before the first step."""
    from bhive_mltf.training.plan import RESULT_FIELDS

    if not plan.tracking:
        return
    significant = {
        name: getattr(task, name)
        for name, parameter in task.get_params()
        if parameter.significant and name not in COMMANDS
    }
    facts = tracking.environment.facts()
    record = tracking.prepare(
        plan.directory,
        data_path=os.environ["DATA_PATH"],
        run_name=f"{task.training_version} {task.model_name} {task.dataset_version}",
        params={
            **significant,
            **plan.model_dump(mode="json", include=set(RESULT_FIELDS)),
        },
        tags={"task": task.task_family, **tracking.environment.tags(facts)},
        status=status,
        tracking=plan.tracking,
    )
    if record is None:
        return
    with tracking.attach(plan.directory) as run:
        run.json(facts, "environment.json")
        run.json(plan.config.model_dump(mode="json"), "config.json")
        run.text("\n".join(dataset.manifest.filelist) + "\n", "filelist.txt")
        spectra = _spectra(dataset, plan.directory)
        if spectra is not None:
            run.artifact(spectra, "figures")
        log_dataset(run, dataset, task.dataset_version, "training")
        if validation_set is not None:
            log_dataset(run, validation_set, str(plan.val_dataset_version), "validation")


def _spectra(dataset: Dataset, directory: Path) -> Path | None:
    """The figure of the weighted spectra; drawn to `directory` for a set without it, None for an upstream set."""
    made = dataset.directory / "spectra.png"
    if made.exists():
        return made
    if not (dataset.directory / "weighting.json").exists() or importlib.util.find_spec("matplotlib") is None:
        return None
    from bhive_mltf.evaluation.spectra import draw_spectra

    return directory / draw_spectra(dataset.directory, directory)


def log_dataset(run: tracking.Run, dataset: object, name: str, context: str) -> None:
    """The data set as an input of the run: digest, numbers, place."""
    manifest = dataset.manifest
    run.dataset(
        name=name,
        digest=manifest.digest,
        source=str(dataset.directory),
        context=context,
        profile={"n_jets": manifest.n_jets, "read": manifest.accounting.read, **manifest.accounting.rejected},
        columns={column: "float" for group in manifest.schema.groups for column in group.columns},
    )


def draw(plan: TrainingPlan) -> None:
    """Loss and accuracy of the epochs, as figures beside the model and in the run."""
    from bhive_mltf.evaluation.figures import loss_curves

    histories = []
    for part in ("training", "validation"):
        with np.load(plan.directory / f"{part}_metrics.npz") as arrays:
            histories.append({name: arrays[name].tolist() for name in arrays.files})
    names = loss_curves(*histories, plan.directory)
    with tracking.attach(plan.directory, tracking=plan.tracking) as run:
        for name in names:
            run.artifact(plan.directory / name, "figures")
        run.json(dict(zip(("training", "validation"), histories, strict=True)), "histories.json")
