"""The run of the task that runs in this process, for code that has no task at hand, such as a training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bhive_mltf.tracking.run import NullRun, Run

_current: list[Run] = []


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
