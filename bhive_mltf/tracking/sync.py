"""What killed processes and silent servers left: closing runs that nobody works on, and delivering journals."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bhive_mltf.tracking import connection, deliver, journal
from bhive_mltf.tracking.connection import one_line
from bhive_mltf.tracking.current_run import attach
from bhive_mltf.tracking.run import FLUSH_TIMEOUT
from bhive_mltf.tracking.run_resolver import Runs
from bhive_mltf.tracking.store import FILE_NAME, RunRecord

logger = logging.getLogger(__name__)

ENDED = ("FINISHED", "FAILED", "KILLED")
FAILURE_TAG = "failure"
GONE = "its processes are gone without a word: a kill, or a lost machine"


@dataclass(frozen=True)
class Synced:
    """What was done for one training directory.

    delivered, left : records by kind; closed : the status that an abandoned run was given, empty if none was.
    """

    directory: Path
    delivered: Counter[str]
    left: Counter[str]
    closed: str


@dataclass(frozen=True)
class End:
    """How a training ended that no process works on any more.

    status : of its run; empty for one that goes on by itself, whose run stays as it is.
    failure : why it has not finished; empty where nothing is known.
    started : of a job that is over for certain, when it was handed in, in seconds since 1970.
    """

    status: str
    failure: str = ""
    started: float | None = None


def directories(folder: Path) -> Iterator[Path]:
    """The training directories below a folder, itself included, that have a run; those set aside too."""
    for path in sorted(folder.rglob(FILE_NAME)):
        yield path.parent


def sync(
    directory: Path,
    ended_as: Callable[[Path], End] = lambda directory: End("KILLED"),  # noqa: ARG005
    locks: Sequence[str] = (".",),
    timeout: float = FLUSH_TIMEOUT,
) -> Synced:
    """Close the run of a training that was killed, and deliver what its journal holds.

    Parameters
    ----------
    ended_as : how a training ended that no process works on any more.
    locks : see `close_abandoned`.
    """
    end = ended_as(directory)
    if end.started is not None:
        close(directory, end.status, end.failure, end.started, timeout)
        closed = end.status
    else:
        closed = end.status if end.status and close_abandoned(directory, end.status, locks, end.failure) else ""
    before = deliver.undelivered(directory)
    if before:
        attach(directory).finish(timeout=timeout)
    left = deliver.undelivered(directory)
    return Synced(directory, before - left, left, closed)


def close(directory: Path, status: str, failure: str, since: float, timeout: float = FLUSH_TIMEOUT) -> None:
    """End the run of a training in place of its owner, which may have said itself why it failed.

    failure : why. since : seconds since 1970; what the owner said before was about an earlier start.
    """
    run = attach(directory)
    if not _is_failure_told(directory, since):
        run.tags({FAILURE_TAG: failure})
    run.finish(status, timeout)


def _is_failure_told(directory: Path, since: float) -> bool:
    for path in journal.files(directory):
        begun = 0.0
        for record, _ in journal.read(path):
            begun = record["time"] / 1000 if "journal" in record else begun
            own = record.get("kind") == "tags" and not record.get("child")
            if own and record["values"].get(FAILURE_TAG) and begun >= since:
                return True
    return False


def close_abandoned(directory: Path, status: str, locks: Sequence[str] = (".",), failure: str = "") -> bool:
    """Record the end of a run that says RUNNING although no process works on it; whether that was so.

    The status goes to the journal, with the time of its last record, and is delivered as all else is. SCHEDULED runs
    are left alone. Never raises.

    Parameters
    ----------
    status : what it ended as: FINISHED when the training is complete, else KILLED, or SCHEDULED for one whose job
        waits.
    locks : folders of the directory in which a process that works on the training holds a lock.
    failure : why, for the tag `failure`; of a KILLED run by default that nothing is known.
    """
    from bhive_mltf.files.lock import is_held

    try:
        record = RunRecord.read(directory)
        # a server that does not answer may not know yet that the run waits for its job again
        if record is None or record.external or journal.last_status(directory) in (*ENDED, "SCHEDULED"):
            return False
        if any(is_held(directory / folder) for folder in locks) or not _is_running(directory, record):
            return False
        last = max((path.stat().st_mtime for path in journal.files(directory)), default=time.time())
        own = journal.Journal(directory)
        if said := failure or (GONE if status == "KILLED" else ""):
            own.append("tags", values={FAILURE_TAG: said})
        # a file server may have another clock than those who wrote
        own.append("status", status=status, time=max(int(last * 1000), journal.newest_status(directory)[0]))
        own.close()
    except Exception as error:  # noqa: BLE001 - tracking ends nothing
        logger.warning("the run of %s cannot be closed now (%s)", directory, one_line(error))
        return False
    return True


def _is_running(directory: Path, record: RunRecord) -> bool:
    if record.pending is not None:
        return True
    connection.load()
    with connection.short_http(), connection.quiet_with_warnings():
        client = connection.connect(record.tracking_uri)
        run_id = Runs(directory, record).resolve(client)
        return str(client.get_run(run_id).info.status) == "RUNNING"
