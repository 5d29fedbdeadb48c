"""A job that its time limit ended before it had saved: who follows it puts it back into the queue."""

from __future__ import annotations

import logging

from bhive_mltf.errors import ProfileError, QueryFailedError, SlurmError
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.slurm import dispatch
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.job import SPEC_NAME, JobSpec
from bhive_mltf.slurm.outcome import Progress
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState

logger = logging.getLogger(__name__)


def put_back(record: JobRecord, client: Slurm) -> tuple[JobRecord, str]:
    """Requeue the job when another attempt is left and makes sense; the record, and what was done, empty for nothing.

    An attempt makes sense when the ranks got further than at the time limit before. One command at a time does it.
    """
    try:
        spec = JobSpec.read(record.folder / SPEC_NAME)
        with DirectoryLock(record.folder, wait_s=None):
            record = JobRecord.read(record.directory) or record
            client.forget()
            record, info = dispatch.look(record, client)
            if info.state is not JobState.TIMEOUT:
                return record, "another command put it back into the queue"
            progress = Progress.read(record.folder)
            step = progress.step if progress is not None and progress.step is not None else 0
            if not _makes_sense(record, spec, step) or record.job_id is None:
                return record, ""
            client.requeue(record.job_id)
            record = record.changed(timeout_step=step, state=JobState.PENDING, ended=None)
    except QueryFailedError as error:
        return record, f"{error}; asking again"
    except (SlurmError, ProfileError) as error:
        logger.warning("the job reached its time limit and is not put back into the queue: %s", error)
        return record, ""
    return record, f"job {record.job_id} reached its time limit before it had saved: back in the queue"


def _makes_sense(record: JobRecord, spec: JobSpec, step: int) -> bool:
    goes_on = spec.kind == "ranks" and spec.requeue and spec.token == record.token
    return goes_on and record.restarts + 1 < spec.max_attempts and step > record.timeout_step
