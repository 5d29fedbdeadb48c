"""Going on after a time limit that came before the project had saved."""

from __future__ import annotations

import logging
from dataclasses import replace

from bhive_mltf.gateway.settings import Settings
from bhive_mltf.gateway.store.tables import Submission
from bhive_mltf.gateway.worker import job_folder
from bhive_mltf.ranks.files import PROGRESS_NAME, RankProgress
from bhive_mltf.slurm import follow
from bhive_mltf.slurm.batch_step.attempts import read_attempts
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.parsing import JobInfo
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState

logger = logging.getLogger(__name__)


def after_time_limit(
    settings: Settings, submission: Submission, record: JobRecord, info: JobInfo, client: Slurm
) -> tuple[JobRecord, JobInfo]:
    """Put the job back if it goes on from its checkpoints and has written one since its last start."""
    if not submission.resume:
        return record, info
    starts = [attempt.start for attempt in read_attempts(record.folder, record.job_id)]
    newest = job_folder.newest_checkpoint(settings, submission)
    if not starts or newest <= max(starts):
        return record, info
    # how far a project is nobody knows: the time of its checkpoint stands for it
    RankProgress(step=int(newest)).write(record.folder / PROGRESS_NAME)
    record, what = follow.requeue_after_timeout(record, client)
    if not what:
        return record, info
    logger.info("%s: %s", submission.id, what)
    # until the scheduler says it itself
    return record, replace(info, state=JobState.PENDING)
