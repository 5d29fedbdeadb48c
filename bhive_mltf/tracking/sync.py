"""Delivering what trainings could not: the server was away, or the process was killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bhive_mltf.tracking import abandoned_runs, deliver, journal
from bhive_mltf.tracking.record import FILE_NAME
from bhive_mltf.tracking.run import FLUSH_TIMEOUT, attach


@dataclass(frozen=True)
class Synced:
    """What was done for one training directory.

    delivered, left : records by kind; closed : the status that an abandoned run was given, empty if none was.
    """

    directory: Path
    delivered: Counter[str]
    left: Counter[str]
    closed: str


def directories(folder: Path) -> Iterator[Path]:
    """The training directories below a folder, itself included, that have a run; those set aside too."""
    for path in sorted(folder.rglob(FILE_NAME)):
        yield path.parent


def undelivered(directory: Path) -> Counter[str]:
    """What the journal of a training still holds, by kind."""
    found: Counter[str] = Counter()
    for path in journal.files(directory):
        found += deliver.count(record for record, _ in journal.read(path, journal.sent(path)))
    return found


def sync(
    directory: Path,
    ended_as: Callable[[Path], str] = lambda directory: "KILLED",  # noqa: ARG005
    at_work: Callable[[Path], bool] = abandoned_runs.is_at_work,
    timeout: float = FLUSH_TIMEOUT,
) -> Synced:
    """Close the run of a training that was killed, and deliver what its journal holds.

    Parameters
    ----------
    ended_as : the status of a training that nobody works on any more.
    at_work : see `closing.close_abandoned`.
    """
    status = ended_as(directory)
    closed = status if abandoned_runs.close_abandoned(directory, status, at_work) else ""
    before = undelivered(directory)
    if before:
        attach(directory).finish(timeout=timeout)
    left = undelivered(directory)
    return Synced(directory, before - left, left, closed)
