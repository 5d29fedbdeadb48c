"""Runs whose training was killed: nobody says that they have ended, so the next one who looks does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from bhive_mltf.tracking import connection, journal
from bhive_mltf.tracking.failures import one_line
from bhive_mltf.tracking.record import RunRecord
from bhive_mltf.tracking.run_resolver import Runs

logger = logging.getLogger(__name__)

ENDED = ("FINISHED", "FAILED", "KILLED")
# Where the processes that train hold their locks: rank 0 in the directory, the command in its folder.
LOCKED_FOLDERS = (".", ".command")


def is_at_work(directory: Path) -> bool:
    """Whether a process trains in this directory, or may do so: one on another machine that was heard of lately."""
    from bhive_mltf.files.lock import is_held

    return any(is_held(directory / folder) for folder in LOCKED_FOLDERS)


def close_abandoned(directory: Path, status: str, at_work: Callable[[Path], bool] = is_at_work) -> bool:
    """Note the end of a run that says RUNNING although no process works on it; whether it was so.

    The status goes to the journal, with the time of its last record, and is delivered as all else is. Never raises.

    Parameters
    ----------
    status : what it ended as: FINISHED when the training is complete, else KILLED.
    at_work : whether somebody trains; who knows of jobs gives their own. SCHEDULED runs are left alone.
    """
    try:
        record = RunRecord.read(directory)
        if record is None or record.external or journal.last_status(directory) in ENDED or at_work(directory):
            return False
        if not _is_running(directory, record):
            return False
        last = max((path.stat().st_mtime for path in journal.files(directory)), default=time.time())
        own = journal.Journal(directory)
        own.append("status", status=status, time=int(last * 1000))
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
