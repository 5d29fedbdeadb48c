"""One job per output directory: handed in once, whoever asks and how often, then followed."""

from __future__ import annotations

import logging
import time
from typing import Final

from bhive_mltf.errors import QueryFailedError, SubmissionError
from bhive_mltf.files import atomic
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.slurm import script
from bhive_mltf.slurm.answers import JobInfo
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.job import OUTCOME_NAME, PROGRESS_NAME, SCRIPT_NAME, JobSpec
from bhive_mltf.slurm.profiles import Profile
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState

logger = logging.getLogger(__name__)

# After that an sbatch of a command that is gone has ended, and what it handed in is in the queue.
SUBMISSION_ENDS_S: Final = 90.0
LOOK_AGAIN_S: Final = 2.0


def submit_or_attach(profile: Profile, spec: JobSpec, client: Slurm | None = None) -> JobRecord:
    """The job of `spec.directory`: the one that waits or runs, else a new one.

    A lock in the directory lets one command at a time decide, on whatever host. Nothing is handed in while it is not
    certain that the job before is over.

    Raises
    ------
    SubmissionError : the scheduler refuses the job.
    QueryFailedError : it is not known whether an earlier job, or the one just handed in, exists; the same command,
        typed again, finds out.
    """
    client = client or Slurm.of(profile)
    spec.folder.mkdir(parents=True, exist_ok=True)
    with DirectoryLock(spec.folder, wait_s=None):
        before = JobRecord.read(spec.directory)
        if before is not None and not before.is_over:
            before = find_out(before, Slurm(before.slurm_conf, client.accounting))
            if not before.is_over:
                return before
        return _submit(profile, spec, client, before)


def find_out(record: JobRecord, client: Slurm) -> JobRecord:
    """The record with the job's present state; a job without an id is looked for by its token.

    Raises
    ------
    QueryFailedError : no answer, and the record has no job id.
    """
    if record.job_id is None:
        record = _look_for(record, client)
        if record.job_id is None:
            return record
    try:
        return update(record, client.query([record.job_id])[record.job_id])
    except QueryFailedError as error:
        logger.warning("job %s: its state is not known now (%s)", record.job_id, error)
        return record


def update(record: JobRecord, info: JobInfo) -> JobRecord:
    """The record, written, with what the scheduler just said; UNKNOWN changes nothing."""
    if info.name not in ("", "allocation", record.job_name):
        # job ids are given again after a while
        info = JobInfo(info.job_id, JobState.GONE)
    if info.state is JobState.UNKNOWN:
        return record
    values: dict[str, object] = {"state": info.state, "exit_code": info.exit_code}
    if info.restarts > record.restarts:
        values["restarts"] = info.restarts
    if info.state.is_final and not info.state.may_requeue:
        values |= {"ended": time.time(), "message": info.reason}
    return record.changed(**values)


def _look_for(record: JobRecord, client: Slurm) -> JobRecord:
    """Find the job of a command that died while it was handing it in."""
    while True:
        found = client.find_by_name(record.token)
        if found:
            return record.changed(job_id=found[-1].job_id, submitted=found[-1].submitted or record.created)
        if time.time() > record.created + SUBMISSION_ENDS_S:
            message = "the command ended before the scheduler took the job"
            return record.changed(state=JobState.GONE, ended=time.time(), message=message)
        time.sleep(LOOK_AGAIN_S)


def _submit(profile: Profile, spec: JobSpec, client: Slurm, before: JobRecord | None) -> JobRecord:
    for name in (PROGRESS_NAME, OUTCOME_NAME):
        (spec.folder / name).unlink(missing_ok=True)
    atomic.write_text(spec.folder / SCRIPT_NAME, script.render(profile, spec))
    spec.write()
    record = JobRecord.new(profile, spec, client.slurm_conf, before)
    record.write()
    try:
        job_id = client.submit(spec.folder / SCRIPT_NAME, profile.pass_environment)
    except SubmissionError as error:
        record.changed(state=JobState.GONE, ended=time.time(), message=str(error))
        raise
    except QueryFailedError as error:
        logger.warning("%s; looking for the job in the queue", error)
        record = _look_for(record, client)
        if record.job_id is None:
            raise SubmissionError(f"the scheduler did not take the job ({error}): type the command again") from None
        return record
    return record.changed(job_id=job_id, submitted=time.time(), state=JobState.PENDING)
