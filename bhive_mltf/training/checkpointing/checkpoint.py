"""Checkpoint files: written whole, verified when read, the newest good one wins.

`model_<t>.pt` after epoch t or iteration t, `best_model.pt`, and rolling `checkpoints/step_<9 digits>.pt` between them.
All hold the same keys: upstream's (`epoch`, `model_state_dict`, `optimizer_state_dict`, `scheduler_state_dict`,
`loss_train`, `acc_train`, `loss_val`, `acc_val`) and what else decides the next step. Plain types only, so that
they load with `weights_only=True`.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from bhive_mltf.errors import CheckpointError
from bhive_mltf.files import atomic, disk

logger = logging.getLogger(__name__)

State = dict[str, Any]
STEP_FOLDER = "checkpoints"
BEST_NAME = "best_model.pt"
REQUIRED_KEYS = ("model_state_dict", "optimizer_state_dict", "epoch", "epoch_complete", "global_step", "epoch_sums")
# Keys that say what is trained; a checkpoint that differs in one belongs to something else.
IDENTITY_KEYS = (
    "config_digest",
    "dataset_digest",
    "val_dataset_digest",
    "model_name",
    "model_kwargs",
    "classes",
    "inputs",
    "settings",
)
_EPOCH_FILE = re.compile(r"model_(\d+)\.pt")
_STEP_FILE = re.compile(r"step_(\d+)\.pt")


def epoch_path(directory: Path, epoch: int) -> Path:
    """`model_<epoch>.pt`."""
    return directory / f"model_{epoch}.pt"


def step_path(directory: Path, global_step: int) -> Path:
    """`checkpoints/step_<global step>.pt`."""
    return directory / STEP_FOLDER / f"step_{global_step:09d}.pt"


def epoch_files(directory: Path) -> dict[int, Path]:
    """Epoch -> file, newest first."""
    return _numbered(directory, _EPOCH_FILE)


def step_files(directory: Path) -> dict[int, Path]:
    """Global step -> file, newest first."""
    return _numbered(directory / STEP_FOLDER, _STEP_FILE)


def write_checkpoint(path: Path, state: State) -> None:
    """Write a checkpoint as a whole.

    Raises
    ------
    CheckpointError : the disk does not take it; raised from the OSError that says why.
    """
    try:
        with atomic.open_replacing(path) as file:
            torch.save(state, file)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be written: {error.strerror or error}; make room or mend that, then type "
            "the command again: it goes on from the one before"
        ) from error


def read_checkpoint(path: Path) -> State:
    """Read a checkpoint to the host; CheckpointError unless it is whole."""
    try:
        # torch checks no checksums when it reads, its files carry them all the same
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"The checkpoint {path} is damaged: {damaged} in it has a wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, zipfile.BadZipFile, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise CheckpointError(f"The checkpoint {path} cannot be read: {reason}") from error
    missing = [key for key in REQUIRED_KEYS if key not in state]
    if missing:
        raise CheckpointError(f"The checkpoint {path} cannot be continued: it lacks {', '.join(missing)}")
    return dict(state)


def function_version(state: Mapping[str, Any]) -> int:
    """The version of the model's function that the weights of a checkpoint were trained with."""
    return int(state.get("model_function", 1))


def find_latest(directory: Path) -> tuple[Path, State] | None:
    """The checkpoint furthest on, epoch files and step files alike; None if there is none.

    One that cannot be read is skipped with a warning, and the one before it taken; CheckpointError where the machine
    or its file server does not let any be read.
    """
    found = [_first_good(files.values()) for files in (epoch_files(directory), step_files(directory))]
    good = [item for item in found if item is not None]
    # of two at the same step the finished epoch has the validation too
    return max(good, key=lambda item: (item[1]["global_step"], item[1]["epoch_complete"]), default=None)


def check_identity(path: Path, state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """CheckpointError, naming what differs, when a checkpoint belongs to another training."""
    for key in IDENTITY_KEYS:
        there, here = _canonical(state.get(key)), _canonical(expected[key])
        if there == here:
            continue
        name = key
        if isinstance(there, dict) and isinstance(here, dict):
            inner = next(k for k in sorted({*there, *here}) if there.get(k) != here.get(k))
            name, there, here = f"{key}.{inner}", there.get(inner), here.get(inner)
        raise CheckpointError(
            f"The checkpoint {path} was made with {name} = {_short(there)}, this training has {_short(here)}: "
            "give the training another version, or restart it"
        )


def prune_steps(directory: Path, keep: int) -> None:
    """Remove all but the last `keep` step checkpoints."""
    for path in list(step_files(directory).values())[keep:]:
        path.unlink(missing_ok=True)


def prune_before(directory: Path, number: int) -> None:
    """Remove the epoch file just before `model_<number>.pt`."""
    before = [other for other in epoch_files(directory) if other < number]
    if before:
        epoch_path(directory, max(before)).unlink(missing_ok=True)


def _numbered(directory: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    if not directory.is_dir():
        return {}
    matches = ((pattern.fullmatch(path.name), path) for path in directory.iterdir())
    numbers = {int(match[1]): path for match, path in matches if match}
    return dict(sorted(numbers.items(), reverse=True))


def _first_good(paths: Iterable[Path]) -> tuple[Path, State] | None:
    for path in paths:
        try:
            return path, read_checkpoint(path)
        except CheckpointError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in disk.OF_THE_MACHINE:
                raise  # it may be whole: going on from an older one would be for nothing
            logger.warning("%s; it is skipped, and the one before it taken", error)
    return None


def _canonical(value: object) -> Any:  # noqa: ANN401 - JSON
    return json.loads(json.dumps(value, sort_keys=True))


def _short(value: object, limit: int = 80) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
