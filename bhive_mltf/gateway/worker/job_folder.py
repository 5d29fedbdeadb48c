"""The folder of a job: the project's copy, and beside it what the sandbox does not see.

jobs/<id>/work      the project, with `ckpt` and `out`: all that the project can write
jobs/<id>/private   what the launcher reads: the command, and the token of the relay
jobs/<id>/slurm     record, script and outcome, of `bhive_mltf.slurm`
jobs/<id>/logs      what the project printed
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Final

from bhive_mltf.errors import ProfileError
from bhive_mltf.files import atomic
from bhive_mltf.gateway import faults
from bhive_mltf.gateway.environments import builder, wanted
from bhive_mltf.gateway.environments.store import Store
from bhive_mltf.gateway.inside.plan import LaunchPlan
from bhive_mltf.gateway.projects import archive, blobs
from bhive_mltf.gateway.settings import JobProfile, Settings
from bhive_mltf.gateway.store.tables import Submission
from bhive_mltf.ranks.files import log_path
from bhive_mltf.slurm import job, profiles
from bhive_mltf.slurm.job import JobSpec
from bhive_mltf.slurm.profiles import Profile

WORK: Final = "work"
PRIVATE: Final = "private"
PLAN_NAME: Final = "launch.json"
TOKEN_NAME: Final = "token"  # noqa: S105 - of a file
CHECKPOINTS: Final = "ckpt"
OUTPUTS: Final = (CHECKPOINTS, "out")
_FILE_MODE: Final = 0o600


def unpack(settings: Settings, submission: Submission) -> None:
    """Unpack the project, as a whole or not at all; ArchiveError when it is none."""
    folder = settings.job_folder(submission.id)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (folder / WORK).exists():
        return
    temporary = folder / f"{WORK}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    archive.unpack(blobs.path_of(settings.spool, submission.digest), temporary, settings.limits)
    for name in OUTPUTS:
        (temporary / name).mkdir(exist_ok=True)
    faults.point("in_unpack")
    temporary.rename(folder / WORK)


def write_token(settings: Settings, submission: Submission, token: str) -> None:
    """Write the token that the relay adds to each call; only the service's own user reads it."""
    path = settings.job_folder(submission.id) / PRIVATE / TOKEN_NAME
    path.parent.mkdir(exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{TOKEN_NAME}.tmp")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    with os.fdopen(handle, "w") as file:
        file.write(token)
    temporary.replace(path)


def token_age(settings: Settings, submission: Submission) -> float:
    """Seconds since the token was written; infinite without one."""
    try:
        written = (settings.job_folder(submission.id) / PRIVATE / TOKEN_NAME).stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    return time.time() - written


def remove_secrets(settings: Settings, submission: Submission) -> None:
    """Remove what nobody needs once the job is over."""
    (settings.job_folder(submission.id) / PRIVATE / TOKEN_NAME).unlink(missing_ok=True)


def facility_of(profile: JobProfile, submission: Submission) -> Profile:
    """The facility profile of a job; nothing of the worker's environment is handed on.

    Only a job that goes on from its checkpoints is put back into the queue.
    """
    found = profiles.read_profile(
        profile.facility,
        hours=submission.hours,
        pass_environment=(),
        requeue=submission.resume,
        max_attempts=profile.max_attempts if submission.resume else 1,
    )
    return found.model_copy(update={"environment": {**found.environment, **profile.launcher_variables}})


def environment_of(settings: Settings, submission: Submission, profile: JobProfile) -> Path:
    """Where the environment of a job lies: one that was built, or one of its profile.

    Raises
    ------
    ProfileError : the profile has no environment of that name any more.
    """
    if submission.env_key:
        return Store(settings.environments).path(submission.env_key)
    kind, _, name = submission.environment.partition(":")
    if kind != wanted.PREPARED or not name:
        return profile.environment
    if name not in profile.environments:
        raise ProfileError(f"profile {submission.profile} has no environment {name!r} any more")
    return profile.environments[name]


def _interpreters(environment: Path, submission: Submission, profile: JobProfile) -> list[Path]:
    """The installations of Python that a built environment needs, unless the job sees them anyway."""
    if not submission.env_key:
        return []
    found = builder.bases_of(environment / "bin" / "python")
    return [path for path in found if path != environment and path not in profile.read_only]


def log_of(settings: Settings, submission: Submission) -> Path:
    """The log that people read: that of rank 0, to which a build adds what it prints, before there are ranks."""
    return log_path(settings.job_folder(submission.id), 0)


def spec_of(settings: Settings, submission: Submission, profile: JobProfile, facility: Profile) -> JobSpec:
    """The batch job: one launcher per node, which has all that the job gets of that node.

    Writes what the launcher reads.
    """
    folder = settings.job_folder(submission.id)
    plan = LaunchPlan(
        argv=tuple(submission.argv),
        work=str(folder / WORK),
        logs=str(folder / "logs"),
        runtime=profile.runtime,
        network=profile.network,
        environment=str(environment := environment_of(settings, submission, profile)),
        read_only=tuple(map(str, (*profile.read_only, *_interpreters(environment, submission, profile)))),
        ranks_per_node=submission.ranks_per_node,
        resume=submission.resume,
        variables=dict(profile.variables),
        tracking_url=settings.tracking_url,
        token_file=str(folder / PRIVATE / TOKEN_NAME),
        run_id=submission.run_id,
        experiment_id=submission.experiment_id,
        disk_bytes=int(profile.disk_gb * 1e9),
        processes=profile.processes_per_node,
    )
    path = folder / PRIVATE / PLAN_NAME
    path.parent.mkdir(exist_ok=True, mode=0o700)
    atomic.write_text(path, plan.to_json())
    spec = job.make_spec(
        facility,
        name=submission.id,
        kind="ranks",
        command=[facility.python, "-m", "bhive_mltf.gateway.inside.launch", str(path)],
        directory=folder,
        nodes=submission.nodes,
        ranks_per_node=1,
    )
    return spec.model_copy(
        update={
            "workdir": str(folder),
            "gpus_per_node": profile.gpus_per_node,
            "cpus_per_rank": profile.cpus_per_node,
            "environment": {"HOME": str(folder / PRIVATE)},
        }
    )


def newest_checkpoint(settings: Settings, submission: Submission) -> float:
    """When a file of the checkpoint folder was last written; 0 without any."""
    newest = 0.0
    for folder, _, names in os.walk(settings.job_folder(submission.id) / WORK / CHECKPOINTS):
        for name in names:
            with contextlib.suppress(OSError):
                newest = max(newest, os.lstat(os.path.join(folder, name)).st_mtime)  # noqa: PTH118 - many files
    return newest
