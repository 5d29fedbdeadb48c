"""Starting a training: its record, its MLflow run, and its ranks.

One rank runs in this process, several on this machine as processes of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bhive_mltf import tracking
from bhive_mltf.data.manifest import FILE_NAME as MANIFEST
from bhive_mltf.data.manifest import file_checksum
from bhive_mltf.errors import ParameterError, RecordMismatchError
from bhive_mltf.files import disk
from bhive_mltf.files.lock import COMMAND_FOLDER, STALE_AFTER_S, DirectoryLock
from bhive_mltf.files.records import Record, compare
from bhive_mltf.ranks import joined
from bhive_mltf.ranks.gpus import ranks_here
from bhive_mltf.ranks.joined import JoinedRanks
from bhive_mltf.ranks.launcher import Launcher, LaunchRequest, LocalRanks
from bhive_mltf.ranks.process import end_with_parent
from bhive_mltf.training.plan import RESULT_FIELDS, TrainingPlan

if TYPE_CHECKING:
    from bhive_mltf.data.dataset import Dataset

ENTRYPOINT = (sys.executable, "-m", "bhive_mltf.training")
# Where a training on ROOT files keeps the manifest of what it read.
ROOT_RECORD = "root_files"
RANKS_END_S = STALE_AFTER_S + 30.0


@dataclass(frozen=True)
class TrainingRequest:
    """What a command asks of the training in a directory; the plan says what is trained.

    asked : what decides the weights and is not in the path, `config` (a digest) among it; `defaults` of these.
    config_name : as it was typed.
    restart, resume_epoch, extend_training : changes that are asked for.
    iterations : whether `resume_epoch` counts iterations.
    data_path : folder of all outputs.
    task, run_name, params : for the MLflow run.
    dataset_version : name of the training set in the run.
    """

    directory: Path
    asked: dict[str, Any]
    defaults: dict[str, Any]
    config_name: str
    restart: bool
    resume_epoch: int
    extend_training: int
    iterations: bool
    data_path: str
    task: str
    run_name: str
    params: dict[str, Any]
    dataset_version: str


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


def begin(request: TrainingRequest) -> tuple[Record, Path | None]:
    """Carry out what the command changes.

    Returns
    -------
    What the directory is made with from now on, and the folder with what was set aside.

    Raises
    ------
    CheckpointError : the epoch to go back to is not there.
    RecordMismatchError : the directory was made with other parameters.
    """
    from bhive_mltf.training.checkpointing import restart

    changed, aside = restart.carry_out(
        request.directory,
        anew=request.restart,
        epoch=request.resume_epoch,
        iterations=request.iterations,
    )
    return _record(request, changed), aside


def settled(plan: TrainingPlan, record: Record, **values: int) -> TrainingPlan:
    """The plan that is trained: recorded values hold where the command leaves a parameter at its default.

    values : fields that whoever starts the ranks decides.
    """
    recorded = {name: value for name, value in record.parameters.items() if name != "config"}
    recorded["betas"] = tuple(recorded["betas"])
    plan = plan.model_copy(update={**recorded, "generation": record.generation, **values})
    return plan.model_copy(update={"model_function": _model_function(plan)})


def _model_function(plan: TrainingPlan) -> int:
    """The version of the model's function that trains: that of the weights it begins with, else the newest."""
    from bhive_mltf.models import registry
    from bhive_mltf.training.checkpointing import checkpoint, start_from

    found = checkpoint.find_latest(plan.directory)
    if found is not None:
        return checkpoint.function_version(found[1])
    if plan.start_from:
        return start_from.read(Path(plan.start_from)).function_version(plan.model_name)
    return registry.entry(plan.model_name).function


def launch(plan: TrainingPlan, launcher: Launcher | None = None) -> None:
    """Write the plan to its directory and train; returns when the training is done.

    Parameters
    ----------
    launcher : starts the ranks; by default one rank runs here, and what the engine raises passes through.

    Raises
    ------
    ParameterError : more nodes than ranks can be started on from here.
    RankFailedError, TrainingInterruptedError : see `LocalRanks.launch`.
    """
    place = joined.Place.of_leader() if launcher is None else None
    if place is not None:
        plan, launcher = _joined(plan, place), JoinedRanks(place, ENTRYPOINT)
    ranks = ranks_here(plan.ranks_per_node)
    plan = plan.model_copy(update={"ranks_per_node": ranks, "directory": plan.directory.absolute()})
    with disk.writing(plan.directory):
        plan.write()
    if launcher is None:
        if plan.nodes > 1:
            raise ParameterError(
                f"nodes is {plan.nodes}, but ranks are started on this machine only, also inside an allocation: train "
                "as a job (--slurm PROFILE), or leave nodes at 1"
            )
        if plan.ranks_per_node == 1:
            _train_here(plan)
            return
        launcher = LocalRanks(ENTRYPOINT)
    launcher.launch(LaunchRequest(plan.directory, plan.path, plan.ranks_per_node))


def _joined(plan: TrainingPlan, place: joined.Place) -> TrainingPlan:
    """The plan for the ranks of `bhive-mltf join`, which decides how many there are."""
    asked, there = (plan.nodes, plan.ranks_per_node), (place.nodes, place.local_size)
    if asked[0] not in (1, there[0]) or asked[1] not in (0, 1, there[1]):
        raise ParameterError(
            f"nodes and ranks_per_node are {asked[0]} and {asked[1]}, but this command was joined by {there[0]} nodes "
            f"with {there[1]} ranks each: leave both out"
        )
    return plan.model_copy(update={"nodes": there[0], "ranks_per_node": there[1]})


def _train_here(plan: TrainingPlan) -> None:
    from bhive_mltf.ranks.distributed import World, pick_device
    from bhive_mltf.training.engine import train

    train(plan, World(device=pick_device(0)))


def create_run(request: TrainingRequest, plan: TrainingPlan, status: Literal["RUNNING", "SCHEDULED"]) -> Path | None:
    """Find or make the MLflow run, and log what is known before the first step.

    The training set is opened once before the ranks do: they then find the manifest of an upstream set, or what ROOT
    files were converted to, ready.

    Returns
    -------
    The folder of the training set; None without a run.
    """
    from bhive_mltf.training.build import open_training_set, open_validation_set

    dataset = open_training_set(plan)
    if plan.root_files:
        dataset.manifest.write(plan.directory / ROOT_RECORD)
    validation_set = open_validation_set(plan)
    if not plan.tracking:
        return None
    facts = {**tracking.environment.facts(), "system": tracking.provenance.system()}
    record = tracking.prepare(
        plan.directory,
        data_path=request.data_path,
        run_name=request.run_name,
        params={**request.params, **plan.model_dump(mode="json", include=set(RESULT_FIELDS))},
        tags={"task": request.task, **_start_tags(plan), **tracking.environment.tags(facts)},
        status=status,
        tracking=plan.tracking,
    )
    if record is None:
        return None
    with tracking.attach(plan.directory) as run:
        run.json(facts, "environment.json")
        run.json(plan.config.model_dump(mode="json"), "config.json")
        run.json(plan.model_dump(mode="json"), "plan.json")
        run.text(tracking.provenance.lock(), tracking.provenance.LOCK)
        patch = tracking.provenance.patch()
        if patch:
            run.text(patch, tracking.provenance.PATCH)
        run.text("\n".join(dataset.manifest.filelist) + "\n", "filelist.txt")
        log_dataset(run, dataset, request.dataset_version, "training")
        if validation_set is not None:
            log_dataset(run, validation_set, str(plan.val_dataset_version), "validation")
    return dataset.directory


def _start_tags(plan: TrainingPlan) -> dict[str, str]:
    """Which weights a training began with: the content of the file, whose path is a parameter."""
    path = Path(plan.start_from)
    return {"start_from_checksum": file_checksum(path)} if plan.start_from and path.is_file() else {}


def sets_to_copy(plan: TrainingPlan) -> tuple[str, ...]:
    """The sets that ranks may read from copies: those that are whole in their folder, the manifest included."""
    training_set = None if plan.root_files else plan.dataset
    sets = [path.absolute() for path in (training_set, plan.val_dataset) if path]
    return tuple(str(path) for path in sets if (path / MANIFEST).exists())


def log_dataset(run: tracking.Run, dataset: Dataset, name: str, context: str) -> None:
    """The data set as an input of the run: digest, numbers, place; and the ROOT files that it was made of."""
    manifest = dataset.manifest
    about = {
        "name": name,
        "digest": manifest.digest,
        "directory": str(dataset.directory),
        "config": manifest.config_name,
        "config_digest": manifest.config_digest,
        "code_version": manifest.code_version,
        "seed": manifest.seed,
        "sources": [asdict(source) for source in manifest.sources],
        "skipped": [asdict(skipped) for skipped in manifest.skipped_files],
    }
    run.json(about, f"data/{context}.json")
    run.dataset(
        name=name,
        digest=manifest.digest,
        source=str(dataset.directory),
        context=context,
        profile={"n_jets": manifest.n_jets, "read": manifest.accounting.read, **manifest.accounting.rejected},
        columns={column: "float" for group in manifest.schema.groups for column in group.columns},
    )


def _record(request: TrainingRequest, changed: bool) -> Record:
    """What the directory was made with; a new generation when this command changes the training."""
    from bhive_mltf.training.checkpointing import checkpoint

    directory, asked = request.directory, dict(request.asked)
    record = Record.read(directory)
    # a command that failed before its first checkpoint binds nobody
    if record is None or not (checkpoint.epoch_files(directory) or checkpoint.step_files(directory)):
        begun = Record.new({**asked, "extend_training": request.extend_training})
        if record is not None and (changed or record.parameters != begun.parameters):
            _set_run_aside(directory, record)
        begun.write(directory)
        return begun
    if record.parameters["config"] != asked.pop("config"):
        raise RecordMismatchError(
            f"{directory} was trained with another config of the name '{request.config_name}': give the training "
            "another --training-version, or --restart True"
        )
    compare(record.parameters, asked, request.defaults, directory)
    if changed or record.parameters.get("extend_training") != request.extend_training:
        record = Record.new({**record.parameters, "extend_training": request.extend_training})
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
