"""`--restart` and `--resume-epoch`: carried out once per command, which stands on disk and not in memory.

A command is named by a token in its environment, so that all its processes share it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.files import atomic

if TYPE_CHECKING:
    from bhive_mltf.law.tasks.training import TrainingTask

TOKEN_VARIABLE = "BHIVE_MLTF_COMMAND"  # noqa: S105 - the name of a variable
MARK_NAME = "last_change.txt"

os.environ.setdefault(TOKEN_VARIABLE, secrets.token_hex(8))


def is_carried_out(directory: str | Path) -> bool:
    """True when this very command has already changed the training in `directory`, or there is nothing to change."""
    directory = Path(directory)
    if not (directory / "plan.json").exists():
        return True
    try:
        return (directory / MARK_NAME).read_text().strip() == os.environ[TOKEN_VARIABLE]
    except FileNotFoundError:
        return False


def carry_out(task: TrainingTask, directory: Path) -> bool:
    """Set aside what the command asks to; True when the training is another one from now on.

    Raises
    ------
    CheckpointError : the epoch to go back to is not there.
    """
    from bhive_mltf.training.checkpointing import restart

    if not (task.restart or task.resume_epoch > 0) or is_carried_out(directory):
        return False
    if task.restart:
        aside = restart.restart(directory)
    else:
        by_iterations = task.effective("use_iterations")
        aside = restart.resume_epoch(directory, task.resume_epoch, iterations=by_iterations)
    atomic.write_text(directory / MARK_NAME, os.environ[TOKEN_VARIABLE] + "\n")
    if aside is not None:
        task.say(f"set aside: {aside}")
    return True
