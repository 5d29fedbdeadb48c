"""`--slurm PROFILE`: the same task, as a job of a batch system."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi

from bhive_mltf.errors import ParameterError, SlurmError
from bhive_mltf.law import messages
from bhive_mltf.law.messages import refuse_early
from bhive_mltf.law.parameters import technical

if TYPE_CHECKING:
    from bhive_mltf.slurm.profiles import Profile

# Set in a job: what runs there never makes another one, and builds nothing that it requires.
INSIDE_VARIABLE = "BHIVE_MLTF_INSIDE_JOB"
# Keys of a profile that a command may set.
OVERRIDES = ("hours", "partition", "account", "qos", "constraint")


class SlurmDependency:
    """Where a task runs; describes one job, so that requirements do not take it over."""

    slurm = technical(
        luigi.Parameter, default="", description="facility profile: the task runs as a job there; empty: it runs here"
    )
    hours = technical(luigi.FloatParameter, default=0.0, description="time limit of the job; 0: the profile's")
    partition = technical(luigi.Parameter, default="", description="partition of the job; empty: the profile's")
    account = technical(luigi.Parameter, default="", description="account of the job; empty: the profile's")
    qos = technical(luigi.Parameter, default="", description="quality of service of the job; empty: the profile's")
    constraint = technical(luigi.Parameter, default="", description="features of the nodes; empty: the profile's")

    exclude_params_req = {"slurm", *OVERRIDES}

    @property
    def is_dispatched(self) -> bool:
        """Whether `run()` hands the task to a batch system."""
        return bool(self.slurm) and not is_inside_job()

    def profile(self) -> Profile:
        """The profile with what the command sets; ProfileError for one that cannot be."""
        from bhive_mltf.slurm import profiles

        if not self.slurm:
            given = ", ".join(f"--{name} {getattr(self, name)}" for name in OVERRIDES if getattr(self, name))
            raise ParameterError(f"{given} describes a job: add --slurm with one of {', '.join(profiles.available())}")
        return profiles.read_profile(self.slurm, **self.overrides())

    def overrides(self) -> dict[str, Any]:
        """What the command sets in place of the profile's values; None for nothing."""
        return {name: getattr(self, name) or None for name in OVERRIDES}

    def job_directory(self) -> Path:
        """Where the job's own files go, in a folder `slurm/` of it."""
        return Path(self.local_path())

    @refuse_early(list)
    def deps(self) -> list[law.Task]:
        needed = luigi.task.flatten(super().deps())
        if is_inside_job():
            refuse_missing(self, needed)
        elif not messages.only_looking() and (self.slurm or any(getattr(self, name) for name in OVERRIDES)):
            self.profile()
        return needed


def is_inside_job() -> bool:
    """Whether this process is the work of a job of ours."""
    return INSIDE_VARIABLE in os.environ


def refuse_missing(task: law.Task, needed: list[law.Task]) -> None:
    """SlurmError inside a job for a requirement that is not there: it was met before, by the typed command."""
    for one in needed:
        if not one.complete():
            raise SlurmError(
                f"{task.task_family} needs {one.task_family} in {one.local_path()}, which is not there any more, and a "
                "job builds no requirement: type the command again"
            )


def dispatchable(run: Callable[[Any], None]) -> Callable[[Any], None]:
    """Decorate `run()`: with `--slurm` it becomes a job that runs the task's own law command."""

    @functools.wraps(run)
    def wrapper(self: Any) -> None:
        if not self.is_dispatched:
            run(self)
            return
        from bhive_mltf.law.support import jobs

        jobs.run_as_job(self)

    return wrapper
