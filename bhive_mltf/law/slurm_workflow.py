"""A workflow whose branches run as jobs of a facility profile: law's SlurmWorkflow with our jobs in it.

Each job converts some branches and has a directory of its own, named after its outputs, with a record, a script and a
log as any other job here. What law keeps of its jobs in `slurm_jobs_*.json` is for people to read.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi
from law.parameter import NO_FLOAT, NO_STR

from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.law.dispatch import SlurmDependency, is_inside_job
from bhive_mltf.law.messages import refuse_early
from bhive_mltf.law.parameters import technical

law.contrib.load("slurm")

if TYPE_CHECKING:
    from bhive_mltf.law.support.branch_jobs import BranchJobs
    from bhive_mltf.slurm.profiles import Profile

DEFAULT_PROFILE = "generic"


class NoFiles:
    """In place of law's factory of job files: scripts are written where each job has its directory."""

    def cleanup_dir(self, force: bool = True) -> None:
        """Nothing to remove."""


class SlurmBranchesProxy(law.slurm.SlurmWorkflow.workflow_proxy_cls):
    """Hands branches in, and attaches to those that an earlier command handed in."""

    @refuse_early(bool)
    def complete(self) -> bool:
        if not self._cancel_jobs and self.task.is_needless():
            return True
        self.task.input_files()  # an empty list is refused, and not done
        return bool(super().complete())

    def create_job_manager(self, **_: Any) -> BranchJobs:
        from bhive_mltf.law.support.branch_jobs import BranchJobs

        return BranchJobs(self.task)

    def create_job_file_factory(self, **_: Any) -> NoFiles:
        return NoFiles()

    def create_job_file(self, _: int, branches: list[int]) -> dict[str, Any]:
        directory = self.job_manager.describe(branches)
        return {"job": str(directory), "config": None, "log": str(directory / "slurm")}

    def run(self) -> None:
        if self._cancel_jobs:
            self.job_manager.cancel_all()
            self._controlled_jobs = True
            return
        with DirectoryLock(self.task.jobs_directory(), wait_s=None):
            # a command that was waited for may have made them
            self._existing_branches = None
            self._skip_jobs = {}
            super().run()


class SlurmBranches(SlurmDependency, law.slurm.SlurmWorkflow):
    """`--workflow slurm`, which `--slurm PROFILE` implies; without a profile the scheduler's defaults hold."""

    workflow_proxy_cls = SlurmBranchesProxy
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

    # law's that have no meaning here
    slurm_partition = None
    slurm_job_kwargs = ()
    ignore_submission = True
    submission_threads = 1
    poll_fails = 0
    walltime = NO_FLOAT
    job_workers = 1
    shuffle_jobs = cleanup_jobs = transfer_logs = clear_logs = False

    @classmethod
    def modify_param_values(cls, params: dict[str, Any]) -> dict[str, Any]:
        if params.get("slurm") and params.get("workflow") in (None, NO_STR):
            params = {**params, "workflow": "slurm"}
        return super().modify_param_values(params)

    @property
    def is_dispatched(self) -> bool:
        """Whether the branches run as jobs."""
        return self.effective_workflow == "slurm" and not is_inside_job()

    def profile(self) -> Profile:
        from bhive_mltf.slurm import profiles

        return super().profile() if self.slurm else profiles.read_profile(DEFAULT_PROFILE, **self.overrides())

    def jobs_directory(self) -> Path:
        """Where the directories of the jobs are."""
        return Path(self.local_path("jobs"))

    def slurm_output_directory(self) -> law.LocalDirectoryTarget:
        return law.LocalDirectoryTarget(self.local_path())

    @contextlib.contextmanager
    def slurm_workflow_run_context(self) -> Any:
        self.poll_interval = self.poll_interval or self.profile().poll_seconds / 60
        yield

    def slurm_post_submit_delay(self) -> float:
        return 0.0

    def slurm_dump_intermediate_job_data(self) -> int:
        return 1

    def slurm_check_job_completeness(self) -> bool:
        return True

    def slurm_poll_callback(self, _: Any) -> None:
        self.workflow_proxy.job_manager.refuse_cancelled()
