"""One job per output directory: submitted once, found again by its token, looked at, cancelled."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Final

from bhive_mltf.errors import JobFailedError, QueryFailedError, SlurmError, SubmissionError
from bhive_mltf.files import atomic
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.ranks.files import PROGRESS_NAME
from bhive_mltf.slurm import outcome, script
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.job import OUTCOME_NAME, SCRIPT_NAME, JobSpec
from bhive_mltf.slurm.outcome import ConfirmedEnd
from bhive_mltf.slurm.parsing import JobInfo
from bhive_mltf.slurm.profiles import Profile
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState

logger = logging.getLogger(__name__)

# After that an sbatch of a command that was killed has ended, and a job that it submitted is in the queue.
SUBMISSION_ENDS_S: Final = 90.0
LOOK_AGAIN_S: Final = 2.0
CANCEL_WAIT_S: Final = 60.0


def submit_or_attach(profile: Profile, spec: JobSpec, client: Slurm | None = None) -> JobRecord:
    """The job of `spec.directory`: the one that waits or runs, else a new one.

    A lock in the directory lets one command at a time decide, on whatever host. Nothing is submitted while it is not
    certain that the job before is over.

    Raises
    ------
    SubmissionError : the scheduler refuses the job.
    QueryFailedError : it is not known whether an earlier job, or the one just submitted, exists; the same command,
        typed again, finds out.
    """
    client = client or Slurm.of(profile)
    spec.folder.mkdir(parents=True, exist_ok=True)
    with DirectoryLock(spec.folder, wait_s=None):
        before = JobRecord.read(spec.directory)
        if before is not None and before.state is JobState.TIMEOUT:
            # a command that follows it may have requeued it meanwhile
            before = before.changed(ended=None)
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
        record, info = refresh(record, client)
    except QueryFailedError as error:
        logger.warning("job %s: its state is not known now (%s)", record.job_id, error)
        return record
    # a job whose nodes were lost may come back: who follows it finds out
    return end(record, info) if info.state.is_final and not info.state.may_requeue else record


def refresh(record: JobRecord, client: Slurm) -> tuple[JobRecord, JobInfo]:
    """Ask for the job; the record with what is known now, and the answer. QueryFailedError without one."""
    if record.job_id is None:
        raise QueryFailedError(f"the job of {record.directory} has no id yet")
    info = client.query([record.job_id])[record.job_id]
    if info.name not in ("", "allocation", record.job_name):
        # job ids are given again after a while
        info = JobInfo(record.job_id, JobState.GONE)
    if info.state is JobState.UNKNOWN:
        return record, info
    restarts = max(info.restarts, record.restarts)
    return record.changed(state=info.state, exit_code=info.exit_code, restarts=restarts), info


def release_once(record: JobRecord, info: JobInfo, client: Slurm) -> tuple[JobRecord, str]:
    """Release a job that SLURM holds since its launch failed; the record, and what was done, empty for nothing.

    Such a job is whole and would wait for ever. Held again, its fault is hardly the node's, and it is left to its user.
    """
    if not info.launch_failed or record.was_released:
        return record, ""
    try:
        with DirectoryLock(record.folder, wait_s=None):
            record = JobRecord.read(record.directory) or record
            if record.was_released:
                return record, ""
            client.release(info.job_id)
            record = record.changed(was_released=True)
    except SlurmError:
        # tried again when it is asked for again; meanwhile its state tells that it is held
        return record, ""
    return record, f"job {info.job_id} could not be started on its node and was held: released"


def end(record: JobRecord, info: JobInfo) -> JobRecord:
    """The record of a job that is over."""
    return record.changed(state=info.state, exit_code=info.exit_code, ended=time.time(), message=info.reason)


def cancel(record: JobRecord, client: Slurm) -> JobRecord:
    """Cancel the job, wait until it is over, and close its MLflow run as KILLED; a job that is over stays as it is.

    Raises
    ------
    SlurmError : the scheduler refuses, or does not answer.
    """
    record = find_out(record, client)
    if record.is_over or record.job_id is None:
        return record
    client.cancel(record.job_id)
    deadline = time.monotonic() + CANCEL_WAIT_S
    while not record.is_over and time.monotonic() < deadline:
        record = find_out(record, client)
        time.sleep(0 if record.is_over else 0.5)
    close_run(record)
    return record


def close_run(record: JobRecord) -> None:
    """Give the MLflow run of a directory the status that its job ended with, and why; nothing while the job lives."""
    status = record.state.run_status
    if not record.is_over or status not in ("KILLED", "FAILED"):
        return
    from bhive_mltf import tracking

    tracking.close(record.directory, status, run_failure(record), record.created)


def run_failure(record: JobRecord) -> str:
    """Why the run of a job that ended has failed, as the tag `failure` says it."""
    return f"{JobFailedError.__name__}: {outcome.end_sentence(record)}"


def living(directory: Path) -> JobRecord | None:
    """The job of this directory that waits or runs, or may do so; None when there is none.

    The MLflow run of one that has ended meanwhile, with nobody there to see it, is closed.
    """
    record = JobRecord.read(directory)
    if record is None or record.is_over:
        return None
    record = find_out(record, Slurm(record.slurm_conf))
    if record.is_over:
        close_run(record)
        return None
    return record


def refuse_while_a_job_lives(directory: Path) -> None:
    """SlurmError when a command that runs here would work in the directory of a job."""
    record = living(directory)
    if record is not None:
        raise SlurmError(
            f"job {record.job_id} of {directory} is {record.state.value}: add --slurm {Path(record.profile).stem} to "
            f"follow it, or end it with 'bhive-mltf slurm cancel {record.job_id}'"
        )


def _look_for(record: JobRecord, client: Slurm) -> JobRecord:
    """Find the job of a command that was killed during sbatch."""
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


class ManyJobs:
    """Jobs of one profile, each with a directory of its own; one question to the scheduler answers for all of them."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.client = Slurm.of(profile)
        self._records: dict[str, JobRecord] = {}
        self._ends: defaultdict[str, ConfirmedEnd] = defaultdict(ConfirmedEnd)

    def hand_in(self, spec: JobSpec) -> JobRecord:
        """The job of the spec's directory, see `submit_or_attach`, which is looked at from now on."""
        record = submit_or_attach(self.profile, spec, self.client)
        if record.job_id is None:
            raise QueryFailedError(f"the job of {record.directory} has no id yet: type the command again")
        self._records[record.job_id] = record
        return record

    def records(self) -> list[JobRecord]:
        """The jobs as they were last seen."""
        return list(self._records.values())

    def refresh(self) -> dict[str, JobRecord]:
        """What is known of the jobs, by their ids; without an answer what was known before."""
        try:
            for record in [record for record in self._records.values() if not record.is_over]:
                self._look_at(record)
        except QueryFailedError as error:
            logger.warning("%s; the jobs may go on, asking again", error)
        return dict(self._records)

    def _look_at(self, record: JobRecord) -> None:
        record, info = refresh(record, self.client)
        job_id = info.job_id
        record, done = release_once(record, info, self.client)
        if done:
            logger.warning(done)
        if self._ends[job_id].is_over(record, info, time.monotonic()):
            record = end(record, info)
        self._records[job_id] = record
