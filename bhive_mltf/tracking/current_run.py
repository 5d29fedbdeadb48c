"""The run of a training in this process: opened from its directory, and at hand for code without a task."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bhive_mltf.errors import TrackingError
from bhive_mltf.tracking.connection import one_line
from bhive_mltf.tracking.journal import Journal
from bhive_mltf.tracking.run import NullRun, Run
from bhive_mltf.tracking.run_resolver import Runs
from bhive_mltf.tracking.sender import Sender
from bhive_mltf.tracking.store import RunRecord

logger = logging.getLogger(__name__)
_current: list[Run] = []


def attach(directory: str | Path, tracking: bool = True) -> Run:
    """The run of a training directory; a NullRun when tracking is off or the directory has no run.

    Any process that sees the directory may attach; each writes a journal file of its own and delivers all files. What
    an earlier process could not deliver goes first. A store that does not answer is no error.
    """
    if not tracking:
        return NullRun()
    try:
        record = RunRecord.read(Path(directory))
        if record is None:
            return NullRun()
        path = Path(directory).absolute()
        return Run(Journal(path), Sender(Runs(path, record)))
    except TrackingError as error:
        logger.warning("tracking is off: %s", error)
    except ImportError as error:
        logger.warning(
            "tracking is off: %s; pip install 'bhive_mltf[tracking]', or pass --tracking False", one_line(error)
        )
    except Exception as error:  # noqa: BLE001 - tracking never ends a training
        logger.warning("tracking is off: the run in %s cannot be opened (%s)", directory, one_line(error))
    return NullRun()


def current() -> Run:
    """The run that is in use here; one that takes everything and keeps nothing where there is none."""
    return _current[-1] if _current else NullRun()


@contextmanager
def in_use(run: Run) -> Iterator[Run]:
    """Inside, `current()` is this run."""
    _current.append(run)
    try:
        yield run
    finally:
        _current.remove(run)


def log_epoch(
    epoch: int, training_loss: float, training_accuracy: float, validation_loss: float, validation_accuracy: float
) -> None:
    """The values of an epoch, from 0, under upstream's four names, in the run that is in use here."""
    values = {
        "Training Loss": training_loss,
        "Training Accuracy": training_accuracy,
        "Validation Loss": validation_loss,
        "Validation Accuracy": validation_accuracy,
    }
    current().metrics(values, step=epoch)
