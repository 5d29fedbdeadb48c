"""The jobs of a workflow's branches, as law's job manager sees them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from law.job.base import BaseJobManager

from bhive_mltf.errors import JobFailedError
from bhive_mltf.law.support import jobs
from bhive_mltf.slurm import dispatch, job, outcome
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.dispatch import ManyJobs
from bhive_mltf.slurm.job import JobSpec
from bhive_mltf.slurm.record import JobRecord, find_all
from bhive_mltf.slurm.states import JobState


class BranchJobs(BaseJobManager):
    """Hands in one job per group of branches and tells law how it goes.

    task : the workflow.
    """

    def __init__(self, task: Any) -> None:
        super().__init__(threads=1)
        self._task = task
        self._specs: dict[str, JobSpec] = {}

    @functools.cached_property
    def _jobs(self) -> ManyJobs:
        return ManyJobs(jobs.with_secrets(self._task.profile()))

    def describe(self, branches: Sequence[int]) -> Path:
        """Describe the job of some branches; its directory, the same for the same outputs."""
        outputs = "\n".join(self._task.as_branch(branch).output().path for branch in branches)
        name = hashlib.sha256(outputs.encode()).hexdigest()[:10]
        directory = self._task.jobs_directory() / f"branches_{branches[0]}_{name}"
        profile = self._jobs.profile
        self._specs[str(directory)] = job.make_spec(
            profile,
            name=f"{self._task.task_family} {self._task.dataset_version} {branches[0]}",
            kind="command",
            command=jobs.branch_command(self._task, profile, branches),
            directory=directory,
            environment=jobs.shell(),
        )
        return directory

    def submit(self, directory: str, **_: Any) -> str:
        """The id of the job of a directory: the one that lives, else a new one."""
        return str(self._jobs.hand_in(self._specs[directory]).job_id)

    def query_batch(self, job_ids: Sequence[str], **_: Any) -> dict[str, dict[str, Any]]:
        """How the jobs go. A scheduler that does not answer changes nothing."""
        known = self._jobs.look()
        return {job_id: self._status(known[job_id]) for job_id in job_ids}

    def query(self, job_id: str, **_: Any) -> dict[str, Any]:
        """How one job goes."""
        return self.query_batch([job_id])[job_id]

    def cancel(self, job_id: str, **_: Any) -> None:
        """Cancel one job."""
        self._jobs.client.cancel(job_id)

    def cleanup(self, *_: Any, **__: Any) -> None:
        """The job's files stay, as those of any other job."""

    def cancel_all(self) -> None:
        """Cancel all jobs of this data set, whoever handed them in."""
        for record in find_all(self._task.jobs_directory()):
            if not record.is_over:
                ended = dispatch.cancel(record, Slurm(record.slurm_conf))
                self._task.say(f"job {ended.job_id} of {ended.directory}: {ended.state.value}")

    def refuse_cancelled(self) -> None:
        """JobFailedError when somebody cancelled a job: it is not repeated against a person's will."""
        for record in self._jobs.records():
            if record.is_over and record.state is JobState.CANCELLED:
                raise JobFailedError(outcome.failure_sentence(record))

    def _status(self, record: JobRecord) -> dict[str, Any]:
        if not record.is_over:
            status = self.RUNNING if record.state.is_running else self.PENDING
            return self.job_status_dict(record.job_id, status)
        if outcome.is_done(record):
            return self.job_status_dict(record.job_id, self.FINISHED, code=0)
        return self.job_status_dict(
            record.job_id, self.FAILED, code=record.exit_code, error=outcome.failure_sentence(record)
        )
