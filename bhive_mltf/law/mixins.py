"""`--slurm PROFILE`: the same task, as a job of a batch system that is handed in once and then followed."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi

from bhive_mltf.errors import JobFailedError, ParameterError, SlurmError
from bhive_mltf.law.parameters import Host, technical

if TYPE_CHECKING:
    from bhive_mltf.slurm.client import Slurm
    from bhive_mltf.slurm.profiles import Profile
    from bhive_mltf.slurm.record import JobRecord

# Set in a job: what runs there never makes another one, and builds nothing that it requires.
INSIDE_VARIABLE = "BHIVE_MLTF_INSIDE_JOB"
# Keys of a profile that a command may set.
OVERRIDES = ("hours", "partition", "account", "qos", "constraint")
# Parameters that describe one job; its own command has none of them.
DISPATCH = ("slurm", *OVERRIDES)


class SlurmDependency(Host):
    """Where a task runs; describes one job, so that requirements do not take it over."""

    slurm = technical(
        luigi.Parameter, default="", description="facility profile: the task runs as a job there; empty: it runs here"
    )
    hours = technical(luigi.FloatParameter, default=0.0, description="time limit of the job; 0: the profile's")
    partition = technical(luigi.Parameter, default="", description="partition of the job; empty: the profile's")
    account = technical(luigi.Parameter, default="", description="account of the job; empty: the profile's")
    qos = technical(luigi.Parameter, default="", description="quality of service of the job; empty: the profile's")
    constraint = technical(luigi.Parameter, default="", description="features of the nodes; empty: the profile's")

    exclude_params_req = {*DISPATCH}

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

    def deps(self) -> list[law.Task]:
        needed = super().deps()
        if is_inside_job():
            refuse_missing(self, needed)
        elif self.slurm or any(getattr(self, name) for name in OVERRIDES):
            self.profile()
        return needed


def is_inside_job() -> bool:
    """Whether this process is the work of a job of ours."""
    return INSIDE_VARIABLE in os.environ


def refuse_missing(task: Any, needed: list[law.Task]) -> None:
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
        run_as_job(self)

    return wrapper


def run_as_job(task: Any) -> None:
    """Run the task's own law command as a job and follow it; one that waits or runs already is followed.

    Raises
    ------
    JobFailedError : the job is over and the outputs are not there.
    SlurmError : the scheduler does not take the job.
    """
    from bhive_mltf.slurm import dispatch, job
    from bhive_mltf.slurm.client import Slurm

    profile = job.with_secrets(task.profile())
    client = Slurm.of(profile)
    spec = job.make_spec(
        profile,
        name=task.task_family,
        kind="command",
        command=law_command(task, profile),
        directory=task.job_directory(),
        environment=job.shell(),
    )
    follow_to_end(task, dispatch.submit_or_attach(profile, spec, client), client, profile)


def follow_to_end(task: Any, record: JobRecord, client: Slurm, profile: Profile) -> None:
    """Follow a job; JobFailedError when it is over and the task is not complete."""
    from bhive_mltf.slurm import follow

    task.say(f"job {record.job_id} of profile {profile.name}: {record.folder}")
    follow.follow(record, client, poll_s=profile.poll_seconds)
    if not task.complete():
        raise JobFailedError(
            f"job {record.job_id} of {record.directory} says that it is done, but outputs of {task.task_family} are "
            f"missing; its log is {record.log}"
        )


def law_command(task: Any, profile: Profile) -> list[str]:
    """The command that runs this very task, and of other tasks only what was typed for those that it requires."""
    options = [part for option in task.cli_args(exclude=set(DISPATCH)).items() for part in option]
    name = f"{task.__module__}.{task.task_family}"
    return [profile.python, "-m", "law", "run", name, *options, *_for_required(task)]


def _for_required(task: Any) -> list[str]:
    families = {one.task_family for one in _required(task)}
    endings = tuple(f"-{name.replace('_', '-')}" for name in DISPATCH)
    found = []
    for name, value in (law.parser.global_cmdline_args() or {}).items():
        family = name.lstrip("-").split("-", 1)[0]
        if family in families and not name.endswith(endings):
            found += [name, str(value)]
    return found


def _required(task: Any) -> Iterator[Any]:
    for one in law.util.flatten(task.requires()):
        yield one
        yield from _required(one)
