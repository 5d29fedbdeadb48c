"""A workflow whose branches run as jobs of a facility profile, as law's contrib packages have them.

Each job makes some branches and has a directory of its own, named after its outputs, with a record, a script and a
log as any other job here. What law keeps of its jobs in `slurm_jobs_*.json` is for people to read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi
from law.job.base import BaseJobManager
from law.parameter import NO_FLOAT, NO_STR
from law.workflow.remote import BaseRemoteWorkflow, BaseRemoteWorkflowProxy

from bhive_mltf.errors import JobFailedError
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.law.mixins.slurm import DISPATCH, SlurmDependency, is_inside_job, typed_command
from bhive_mltf.law.parameters import technical

if TYPE_CHECKING:
    from bhive_mltf.slurm.dispatch import ManyJobs
    from bhive_mltf.slurm.job import JobSpec
    from bhive_mltf.slurm.profiles import Profile
    from bhive_mltf.slurm.record import JobRecord

DEFAULT_PROFILE = "generic"
# Parameters of the command that hands jobs in, which say nothing of the branches in one.
OF_THIS_COMMAND = ("workflow", "effective_workflow", "branches", "branch", "poll_interval")


class BranchJobs(BaseJobManager):
    """Hands in one job per group of branches and tells law how it goes.

    task : the workflow.
    """

    def __init__(self, task: SlurmWorkflow, threads: int = 1) -> None:
        super().__init__(threads=threads)
        self._task = task
        self._specs: dict[str, JobSpec] = {}

    @functools.cached_property
    def _jobs(self) -> ManyJobs:
        from bhive_mltf.slurm import job
        from bhive_mltf.slurm.dispatch import ManyJobs

        return ManyJobs(job.with_secrets(self._task.profile()))

    def describe(self, branches: Sequence[int]) -> Path:
        """Describe the job of some branches; its directory, the same for the same outputs."""
        from bhive_mltf.slurm import job

        outputs = "\n".join(self._task.as_branch(branch).output().path for branch in branches)
        name = hashlib.sha256(outputs.encode()).hexdigest()[:10]
        directory = self._task.jobs_directory() / f"branches_{branches[0]}_{name}"
        profile = self._jobs.profile
        self._specs[str(directory)] = job.make_spec(
            profile,
            name=self._task.slurm_job_name(branches),
            kind="command",
            command=self._task.branch_command(profile, branches),
            directory=directory,
            environment=job.shell(),
        )
        return directory

    def submit(self, directory: str, **_: Any) -> str:
        """The id of the job of a directory: the one that lives, else a new one."""
        return str(self._jobs.hand_in(self._specs[directory]).job_id)

    def query_batch(self, job_ids: Sequence[str], **_: Any) -> dict[str, dict[str, Any]]:
        """How the jobs go. A scheduler that does not answer changes nothing."""
        known = self._jobs.refresh()
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
        """Cancel all jobs of this workflow, whoever handed them in."""
        from bhive_mltf.slurm import dispatch
        from bhive_mltf.slurm.client import Slurm
        from bhive_mltf.slurm.record import find_all

        for record in find_all(self._task.jobs_directory()):
            if not record.is_over:
                ended = dispatch.cancel(record, Slurm(record.slurm_conf))
                self._task.say(f"job {ended.job_id} of {ended.directory}: {ended.state.value}")

    def refuse_cancelled(self) -> None:
        """JobFailedError when somebody cancelled a job: it is not repeated against a person's will."""
        from bhive_mltf.slurm import outcome
        from bhive_mltf.slurm.states import JobState

        for record in self._jobs.records():
            if record.is_over and record.state is JobState.CANCELLED:
                raise JobFailedError(outcome.failure_sentence(record))

    def _status(self, record: JobRecord) -> dict[str, Any]:
        from bhive_mltf.slurm import outcome

        code, error = None, None
        if not record.is_over:
            status = self.RUNNING if record.state.is_running else self.PENDING
        elif outcome.is_done(record):
            status, code = self.FINISHED, 0
        else:
            status, code, error = self.FAILED, record.exit_code, outcome.failure_sentence(record)
        return dict(self.job_status_dict(record.job_id, status, code, error))


class NoFiles:
    """In place of law's factory of job files: scripts are written where each job has its directory."""

    def cleanup_dir(self, force: bool = True) -> None:
        """Nothing to remove."""


class SlurmWorkflowProxy(BaseRemoteWorkflowProxy):
    """Hands branches in, and attaches to those that an earlier command handed in."""

    workflow_type = "slurm"

    def create_job_manager(self, **kwargs: Any) -> BranchJobs:
        return BranchJobs(self.task, **kwargs)

    def create_job_file_factory(self, **_: Any) -> NoFiles:
        return NoFiles()

    def create_job_file(self, _: int, branches: list[int]) -> dict[str, Any]:
        directory = self.job_manager.describe(branches)
        return {"job": str(directory), "config": None, "log": str(directory / "slurm")}

    def process_resources(self, force: bool = False) -> dict[str, int]:
        # law would look at the outputs, and remember them, before the lock is held
        return super().process_resources(force=True) if force else {}

    def run(self) -> None:
        if self.task.is_controlling_remote_jobs():
            self.job_manager.cancel_all()
            super().run()
            return
        with DirectoryLock(self.task.jobs_directory(), wait_s=None):
            self.process_resources(force=True)
            super().run()


class SlurmWorkflow(SlurmDependency, BaseRemoteWorkflow):
    """`--workflow slurm`, which `--slurm PROFILE` implies; without a profile the scheduler's defaults hold."""

    workflow_proxy_cls = SlurmWorkflowProxy
    exclude_index = True

    retries = technical(luigi.IntParameter, default=3, description="how often a job that failed is repeated")
    tasks_per_job = technical(luigi.IntParameter, default=1, description="branches that one job converts")
    poll_interval = law.DurationParameter(
        default=0.0,
        unit="m",
        significant=False,
        description="time between questions to the scheduler; default unit is minutes; 0: the profile's",
    )
    cancel_jobs = technical(luigi.BoolParameter, default=False, description="cancel the jobs, and hand none in")

    # law's parameters that have no meaning here: the records of the jobs say what was handed in
    ignore_submission = True
    submission_threads = 1
    poll_fails = 0
    walltime = NO_FLOAT
    job_workers = 1
    shuffle_jobs = cleanup_jobs = transfer_logs = clear_logs = False

    slurm_job_kwargs: tuple[str, ...] = ()

    @classmethod
    def modify_param_values(cls, params: dict[str, Any]) -> dict[str, Any]:
        if params.get("slurm") and params.get("workflow") in (None, NO_STR):
            params = {**params, "workflow": "slurm"}
        values: dict[str, Any] = super().modify_param_values(params)
        return values

    @property
    def is_dispatched(self) -> bool:
        """Whether the branches run as jobs."""
        return bool(self.effective_workflow == "slurm") and not is_inside_job()

    def profile(self) -> Profile:
        from bhive_mltf.slurm import profiles

        return super().profile() if self.slurm else profiles.read_profile(DEFAULT_PROFILE, **self.overrides())

    def jobs_directory(self) -> Path:
        """Where the directories of the jobs are."""
        return Path(self.local_path("jobs"))

    def branch_command(self, profile: Profile, branches: Sequence[int]) -> list[str]:
        """The law command that makes some branches where it is started."""
        remote = {*DISPATCH, *self.exclude_params_branch, *OF_THIS_COMMAND}
        command = typed_command(self, profile.python, remote, self.slurm_branch_parameters(profile, branches))
        return [*command, "--workflow", "local", "--branches", ",".join(map(str, branches))]

    def slurm_branch_parameters(self, profile: Profile, branches: Sequence[int]) -> dict[str, Any]:  # noqa: ARG002
        """Hook: parameters that the command of some branches has in place of those of this command."""
        return {}

    def slurm_job_name(self, branches: Sequence[int]) -> str:
        """Hook: name of the job of some branches, shown to people."""
        return f"{self.task_family} {branches[0]}"

    def slurm_output_directory(self) -> law.LocalDirectoryTarget:
        return law.LocalDirectoryTarget(self.local_path())

    def slurm_output_postfix(self) -> str:
        return ""

    @contextlib.contextmanager
    def slurm_workflow_run_context(self) -> Iterator[None]:
        self.poll_interval = self.poll_interval or self.profile().poll_seconds / 60
        yield

    def slurm_workflow_requires(self) -> dict[str, Any]:
        return {}

    def slurm_job_resources(self, job_num: int, branches: Sequence[int]) -> dict[str, int]:  # noqa: ARG002
        return {}

    def slurm_post_submit_delay(self) -> float:
        return 0.0

    def slurm_dump_intermediate_job_data(self) -> int:
        return 1

    def slurm_check_job_completeness(self) -> bool:
        return True

    def slurm_check_job_completeness_delay(self) -> float:
        return 0.0

    def slurm_poll_callback(self, _: Any) -> None:
        self.workflow_proxy.job_manager.refuse_cancelled()

    def slurm_post_poll_callback(self, success: bool, duration: float) -> None:
        """Nothing to do once all jobs are over."""
