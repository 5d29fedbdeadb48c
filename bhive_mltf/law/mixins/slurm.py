"""`--slurm PROFILE`: the same task, as a job of a batch system that is handed in once and then followed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import law
import luigi

from bhive_mltf.errors import JobFailedError, ParameterError, ProfileError, SlurmError
from bhive_mltf.law.mixins.run import RunMixin, Work, given_parameters
from bhive_mltf.law.parameters import Host, technical

if TYPE_CHECKING:
    from bhive_mltf.slurm.client import Slurm
    from bhive_mltf.slurm.job import JobSpec
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

    exclude_params_req: ClassVar[set[str]] = {*DISPATCH}

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


class SlurmMixin(SlurmDependency, RunMixin):
    """With `--slurm PROFILE` `run()` hands the task in as a job and follows it.

    The job of a task with ranks starts these, that of another one its law command.
    """

    place = 0
    # law unites these sets for direct bases only
    exclude_params_req: ClassVar[set[str]] = {*DISPATCH}

    def around_run(self, work: Work) -> None:
        """See `RunMixin`."""
        if self.is_dispatched:
            self.run_as_job()
        elif self.one_command and not is_inside_job():
            from bhive_mltf.slurm import dispatch

            with self.alone() as is_to_do:
                if is_to_do:
                    dispatch.refuse_while_a_job_lives(self.job_directory())
                    work()
        else:
            work()

    def run_as_job(self) -> None:
        """Follow the job of this task; hand it in when there is none.

        Raises
        ------
        JobFailedError : the job is over and the outputs are not there.
        SlurmError : the scheduler does not take the job, or one lives that must not be disturbed.
        """
        from bhive_mltf.slurm import dispatch, job
        from bhive_mltf.slurm.client import Slurm

        profile = job.with_secrets(self.profile())
        client = Slurm.of(profile)
        with self.alone() as is_to_do:
            if not is_to_do and dispatch.living(self.job_directory()) is None:
                return
            record = self.find_or_hand_in(profile, client)
        follow_to_end(self, record, client, profile)

    def find_or_hand_in(self, profile: Profile, client: Slurm) -> JobRecord:
        """The job of this task: the one that waits or runs, else a new one."""
        from bhive_mltf.slurm import dispatch

        self.announce()
        try:
            return dispatch.submit_or_attach(profile, self.job_spec(profile), client)
        except (SlurmError, ProfileError) as error:
            self.close_run("FAILED", str(error))
            raise

    def job_spec(self, profile: Profile) -> JobSpec:
        """What the job runs."""
        from bhive_mltf.slurm import job

        file = self.rank_file()
        command = (
            law_command(self, profile.python) if file is None else [profile.python, "-m", self.rank_module, str(file)]
        )
        sizes = () if file is None else ("nodes", "ranks_per_node", "threads_per_rank")
        return job.make_spec(
            profile,
            name=self.task_family,
            kind="command" if file is None else "ranks",
            command=command,
            directory=self.job_directory(),
            environment=job.shell(),
            **{name: getattr(self, name) for name in sizes},
        )


def is_inside_job() -> bool:
    """Whether this process is the work of a job of ours."""
    return INSIDE_VARIABLE in os.environ


def refuse_missing(task: Any, needed: list[law.Task]) -> None:
    """SlurmError inside a job for a requirement that is not there: it was met before, by the typed command."""
    for one in needed:
        if not one.complete():
            where = f" in {one.local_path()}" if hasattr(one, "local_path") else ""
            raise SlurmError(
                f"{task.task_family} needs {one.task_family}{where}, which is not there any more, and a "
                "job builds no requirement: type the command again"
            )


def follow_to_end(task: Any, record: JobRecord, client: Slurm, profile: Profile) -> None:
    """Follow a job; JobFailedError when it is over and the task is not complete."""
    from bhive_mltf.slurm import follow

    task.publish_message(f"job {record.job_id} of profile {profile.name}: {record.folder}", scheduler=False)
    follow.follow(record, client, poll_s=profile.poll_seconds)
    if not task.complete():
        raise JobFailedError(
            f"job {record.job_id} of {record.directory} says that it is done, but outputs of {task.task_family} are "
            f"missing; its log is {record.log}"
        )


def law_command(task: Any, python: str, exclude: Iterable[str] = DISPATCH) -> list[str]:
    """The command that runs this very task, and of other tasks only what was typed for those that it requires."""
    return [*typed_command(task, python, {*exclude}), *_for_required(task)]


def typed_command(task: Any, python: str, exclude: set[str], instead: Mapping[str, Any] | None = None) -> list[str]:
    """The command with the task's own parameters only, see `given_parameters`."""
    given = given_parameters(task, exclude, instead)
    options = [part for name, text in given.items() for part in (f"--{name.replace('_', '-')}", text)]
    return [python, "-m", "law", "run", f"{task.__module__}.{task.task_family}", *options]


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
