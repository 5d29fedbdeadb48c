"""Handing a job in exactly once, and looking at it: on top of `bhive_mltf.slurm`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from bhive_mltf.errors import QueryFailedError, SubmissionError
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.gateway import faults
from bhive_mltf.gateway.inside.plan import BEGUN
from bhive_mltf.gateway.worker.job_folder import PRIVATE
from bhive_mltf.slurm import dispatch
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.job import JobSpec
from bhive_mltf.slurm.profiles import Profile
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState

# After so many times what an sbatch may take, that of a worker that is gone has ended, and its job is seen.
_SETTLED: Final = 1.5
_NEVER_TAKEN: Final = "the worker ended before the scheduler took the job"
# A controller that is killed forgets what it took in its last seconds; more often, something else is wrong.
_MOST_LOST: Final = 2


class UnansweredError(RuntimeError):
    """Whether sbatch has handed a job in is not known; `dispatch` would wait for it, and everybody else with it."""


class WatchedSlurm(Slurm):
    """The scheduler, with fault points around what cannot be undone."""

    def submit(self, script: Path, passed: object = ()) -> str:  # noqa: ARG002 - nothing of this process is handed on
        """Hand in a script, without any variable of this process."""
        faults.point("before_sbatch")
        try:
            job_id = super().submit(script)
        except QueryFailedError as error:
            raise UnansweredError(str(error)) from None
        faults.point("after_sbatch")
        return job_id


def submit_once(profile: Profile, spec: JobSpec, client: Slurm) -> JobRecord:
    """The job of the spec's directory; one that was handed in, even one that is over, is never handed in again.

    Only a job that the scheduler has lost before it began is: see `is_lost`.

    Raises
    ------
    SubmissionError : the scheduler refuses it.
    QueryFailedError : it is not known yet whether an earlier worker has handed it in: ask again.
    """
    record = JobRecord.read(spec.directory)
    if record is not None and record.job_id is None and not record.is_over:
        record = _found(record, client)
    if record is not None and record.job_id is not None and not is_lost(record):
        return record
    if record is not None and record.job_id is None and record.message and record.message != _NEVER_TAKEN:
        raise SubmissionError(record.message)
    try:
        return dispatch.submit_or_attach(profile, spec, client)
    except UnansweredError as error:
        # the record is there without an id: the next look finds the job by its token, or that there is none
        raise QueryFailedError(str(error)) from None


def is_lost(record: JobRecord) -> bool:
    """Whether the scheduler has no such job any more, and no launcher of it has begun: it may be handed in again."""
    is_gone = record.is_over and record.job_id is not None and record.state is JobState.GONE
    return is_gone and len(record.attempts) < _MOST_LOST and not has_begun(record.directory)


def has_begun(folder: Path) -> bool:
    """Whether the project of this job's folder was started on some node."""
    return any((folder / PRIVATE).glob(f"{BEGUN}*"))


def _found(record: JobRecord, client: Slurm) -> JobRecord:
    """Look once for the job of a worker that died while handing it in, by its token; never waits."""
    with DirectoryLock(record.folder, wait_s=None):
        record = JobRecord.read(record.directory) or record
        if record.job_id is not None:
            return record
        found = client.find_by_name(record.token)
        if found:
            return record.changed(job_id=found[-1].job_id, submitted=found[-1].submitted or record.created)
        if time.time() < record.created + client.submit_timeout_s * _SETTLED:
            raise QueryFailedError(f"whether the job of {record.directory} was taken is not known yet")
        return record.changed(state=JobState.GONE, ended=time.time(), message=_NEVER_TAKEN)
