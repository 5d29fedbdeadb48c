"""`restart` and `resume_epoch`: what a training made is set aside by rename, never deleted.

`extend_training` needs nothing here: a plan with more epochs goes on from the last one.

Each is carried out once per command, which stands on disk and not in memory: a command is named by a token in its
environment, so that all its processes share it.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from bhive_mltf.errors import CheckpointError
from bhive_mltf.files import atomic
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.metrics import Histories

ASIDE_FOLDER = "aside"
TOKEN_VARIABLE = "BHIVE_MLTF_COMMAND"  # noqa: S105 - the name of a variable
MARK_NAME = "last_change.txt"
# What the engine writes; other files of the directory (run.json, parameters.json) belong to others.
_MADE = re.compile(
    r"model_\d+\.pt|best_model\.pt|checkpoints|(training|validation)_metrics\.npz|(train|val)_time\.npy|"
    r"(loss|acc)\.(pdf|png)|report\.html|plan\.json|logs|nonfinite|profile|reproducibility\.json"
)


def command_token() -> str:
    """The token of this command; made at the first call, which comes before the command starts processes."""
    return os.environ.setdefault(TOKEN_VARIABLE, secrets.token_hex(8))


def is_carried_out(directory: Path) -> bool:
    """True when this very command has already changed the training in `directory`, or there is nothing to change."""
    if not (directory / "plan.json").exists():
        return True
    try:
        return (directory / MARK_NAME).read_text().strip() == command_token()
    except FileNotFoundError:
        return False


def carry_out(
    directory: Path, *, anew: bool = False, epoch: int = 0, iterations: bool = False
) -> tuple[bool, Path | None]:
    """Set aside what the command asks to.

    Parameters
    ----------
    anew : `--restart`. epoch, iterations : `--resume-epoch`, see `resume_epoch`; 0 without.

    Returns
    -------
    Whether the training is another one from now on, and the folder with what was set aside.

    Raises
    ------
    CheckpointError : the epoch to go back to is not there.
    """
    if not (anew or epoch > 0) or is_carried_out(directory):
        return False, None
    aside = restart(directory) if anew else resume_epoch(directory, epoch, iterations=iterations)
    atomic.write_text(directory / MARK_NAME, command_token() + "\n")
    return True, aside


def restart(directory: Path) -> Path | None:
    """Set all that a training made aside; returns the folder, None when there was nothing."""
    return _set_aside(directory, (path for path in directory.iterdir() if _MADE.fullmatch(path.name)))


def resume_epoch(directory: Path, epoch: int, *, iterations: bool = False) -> Path | None:
    """Bring the directory to where `epoch` epochs were just done; what came later is set aside.

    Parameters
    ----------
    epoch : number of finished epochs to keep, or with `iterations` of finished iterations; at least 1.

    Raises
    ------
    CheckpointError : `model_<epoch - 1>.pt` (with `iterations` `model_<epoch>.pt`), or the best of those kept, is
        missing or damaged.
    """
    last = epoch if iterations else epoch - 1
    kept = checkpoint.epoch_path(directory, last)
    if not kept.is_file():
        there = ", ".join(map(str, sorted(checkpoint.epoch_files(directory)))) or "none"
        unit = "iterations" if iterations else "epochs"
        raise CheckpointError(
            f"resume_epoch {epoch} needs {kept.name} in {directory}, which has the {unit} {there}: "
            "resume after one of these, or restart"
        )
    state = checkpoint.read_checkpoint(kept)
    best = checkpoint.read_checkpoint(checkpoint.epoch_path(directory, state["best_epoch"]))
    later = [path for number, path in checkpoint.epoch_files(directory).items() if number > last]
    folder = _set_aside(directory, [*later, directory / checkpoint.STEP_FOLDER, directory / checkpoint.BEST_NAME])
    checkpoint.write_checkpoint(directory / checkpoint.BEST_NAME, best)
    Histories(state["histories"]).write(directory)
    return folder


def _set_aside(directory: Path, paths: Iterable[Path]) -> Path | None:
    existing = [path for path in paths if path.exists()]
    if not existing:
        return None
    number = 1
    while (folder := directory / ASIDE_FOLDER / str(number)).exists():
        number += 1
    folder.mkdir(parents=True)
    for path in existing:
        path.rename(folder / path.name)
    return folder
