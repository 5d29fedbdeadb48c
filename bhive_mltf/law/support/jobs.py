"""Running a task as a job: handed in once, then followed until its outputs are there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law

from bhive_mltf.errors import JobFailedError, SlurmError
from bhive_mltf.law.dispatch import OVERRIDES
from bhive_mltf.slurm import dispatch, follow, job
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.record import JobRecord

if TYPE_CHECKING:
    from bhive_mltf.slurm.profiles import Profile

# What a job needs to know of this shell; values that may be secret are handed on by sbatch and written nowhere.
_SHELL = ("PYTHONPATH", "DATA_PATH", "LAW_HOME", "LAW_CONFIG_FILE", "B_HIVE_DIR", "BHIVE_FACILITY_DIR")
_MAY_BE_SECRET = ("MLFLOW_",)
_NEVER = ("MLFLOW_RUN_ID",)
_DISPATCH = ("slurm", *OVERRIDES)


def run_as_job(task: Any) -> None:
    """Run the task's own law command as a job and follow it; one that waits or runs already is followed.

    Raises
    ------
    JobFailedError : the job is over and the outputs are not there.
    SlurmError : the scheduler does not take the job.
    """
    profile = with_secrets(task.profile())
    client = Slurm.of(profile)
    spec = job.make_spec(
        profile,
        name=task.task_family,
        kind="command",
        command=law_command(task, profile),
        directory=task.job_directory(),
        environment=shell(),
    )
    record = dispatch.submit_or_attach(profile, spec, client)
    follow_to_end(task, record, client, profile)


def follow_to_end(task: Any, record: JobRecord, client: Slurm, profile: Profile) -> None:
    """Follow a job; JobFailedError when it is over and the task is not complete."""
    task.say(f"job {record.job_id} of profile {profile.name}: {record.folder}")
    follow.follow(record, client, poll_s=profile.poll_seconds)
    if not task.complete():
        raise JobFailedError(
            f"job {record.job_id} of {record.directory} says that it is done, but outputs of {task.task_family} are "
            f"missing; its log is {record.log}"
        )


def law_command(task: Any, profile: Profile) -> list[str]:
    """The command that runs this very task, and of other tasks only what was typed for those that it requires."""
    options = [part for option in task.cli_args(exclude=set(_DISPATCH)).items() for part in option]
    name = f"{task.__module__}.{task.task_family}"
    return [profile.python, "-m", "law", "run", name, *options, *_for_required(task)]


def branch_command(task: Any, profile: Profile, branches: Sequence[int]) -> list[str]:
    """The command that runs some branches of a workflow where it is started, with the CPUs that a job has."""
    remote = {*task.exclude_params_branch, "workflow", "branches", "branch", "poll_interval"}
    processes = max(task.coffea_worker, min(profile.cpus(), len(branches)))
    arguments = task.cli_args(exclude={*_DISPATCH, *remote}, replace={"coffea_worker": processes})
    options = [part for option in arguments.items() for part in option]
    chosen = ["--workflow", "local", "--branches", ",".join(map(str, branches))]
    return [profile.python, "-m", "law", "run", f"{task.__module__}.{task.task_family}", *options, *chosen]


def _for_required(task: Any) -> list[str]:
    families = {one.task_family for one in _required(task)}
    known = (f"{name.replace('_', '-')}" for name in _DISPATCH)
    endings = tuple(f"-{name}" for name in known)
    found = []
    for name, value in (law.parser.global_cmdline_args() or {}).items():
        family = name.lstrip("-").split("-", 1)[0]
        if family in families and not name.endswith(endings):
            found += [name, str(value)]
    return found


def _required(task: Any) -> Iterable[Any]:
    for one in law.util.flatten(task.requires()):
        yield one
        yield from _required(one)


def shell() -> dict[str, str]:
    """Variables of this shell that the job needs, with absolute paths."""
    found = {name: os.environ[name] for name in _SHELL if os.environ.get(name)}
    if "DATA_PATH" in found:
        found["DATA_PATH"] = str(Path(found["DATA_PATH"]).absolute())
    if "PYTHONPATH" in found:
        parts = [part for part in found["PYTHONPATH"].split(os.pathsep) if part]
        found["PYTHONPATH"] = os.pathsep.join(str(Path(part).absolute()) for part in parts)
    return found


def with_secrets(profile: Profile) -> Profile:
    """The profile, handing on also what may hold credentials and must not be written beside the outputs."""
    ours = [name for name in os.environ if name.startswith(_MAY_BE_SECRET) and name not in _NEVER]
    return profile.model_copy(update={"pass_environment": (*profile.pass_environment, *ours)})


def living(directory: Path) -> JobRecord | None:
    """The job of this directory that waits or runs, or may do so; None when there is none.

    The MLflow run of one that has ended meanwhile, with nobody there to see it, is closed.
    """
    record = JobRecord.read(directory)
    if record is None or record.is_over:
        return None
    record = dispatch.find_out(record, Slurm(record.slurm_conf))
    if record.is_over:
        dispatch.close_run(record)
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
