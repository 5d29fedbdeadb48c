"""What one job does: a file that the job reads, so that no value goes through a shell."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bhive_mltf.errors import ProfileError
from bhive_mltf.files import atomic
from bhive_mltf.slurm.profiles import Profile

FOLDER: Final = "slurm"
SPEC_NAME: Final = "spec.json"
SCRIPT_NAME: Final = "job.sh"
OUTCOME_NAME: Final = "outcome.json"
# PATH outside the image, for what is started inside it.
HOST_PATH: Final = "BHIVE_MLTF_HOST_PATH"

# What a job needs to know of the shell of its command; values that may be secret are handed on by sbatch and written
# nowhere.
SHELL: Final = ("PYTHONPATH", "DATA_PATH", "LAW_HOME", "LAW_CONFIG_FILE", "B_HIVE_DIR", "BHIVE_FACILITY_DIR")
_MAY_BE_SECRET: Final = ("MLFLOW_",)
_NEVER: Final = ("MLFLOW_RUN_ID",)


def new_token() -> str:
    """A token that no other job has."""
    return secrets.token_hex(6)


class JobSpec(BaseModel):
    """What a job runs, and what of its profile it needs inside.

    name : shown to people, such as the task and its version.
    kind : `ranks`: `command` is started once per rank by srun; `command`: once, on the first node.
    command : argument list.
    wrapper : command that starts everything inside an image; empty without one.
    workdir : where the command was typed, so that relative paths in it hold; a node without it uses the job's folder.
    staged : folders that are copied to `staging` of each node while the ranks run.
    afterwards : command that is run once, on the first node, when `command` has done its work; what it does is extra.
    directory : output directory; all of the job's files lie in its folder `slurm/`.
    environment : variables set for the job; no secrets, this file is as readable as the outputs.
    token : random, part of the job's name in the queue.
    probe : file that the submitting command wrote into `directory`; its content is `token`. A node that does not see
        it does not see the outputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["ranks", "command"]
    command: tuple[str, ...] = Field(min_length=1)
    wrapper: tuple[str, ...] = ()
    workdir: str = ""
    afterwards: tuple[str, ...] = ()
    directory: Path
    nodes: int = Field(default=1, ge=1)
    ranks_per_node: int = Field(default=1, ge=1)
    threads_per_rank: int = Field(default=0, ge=0)
    environment: dict[str, str] = Field(default_factory=dict)
    token: str = Field(default_factory=new_token)

    profile: str = ""
    gpus_per_node: int = Field(default=0, ge=0)
    cpus_per_rank: int = Field(default=1, ge=1)
    interface: str = ""
    scratch: str = ""
    staging: str = ""
    staged: tuple[str, ...] = ()
    requeue: bool = True
    max_attempts: int = Field(default=20, ge=1)
    signal_seconds: int = Field(default=120, ge=10)
    probe: str = "probe"

    @field_validator("directory")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError("must be absolute")
        return value

    @field_validator("environment")
    @classmethod
    def _check_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in text:
                raise ValueError(f"{name!r} is no name of an environment variable, or its value has a zero byte")
        return value

    @property
    def folder(self) -> Path:
        """Where script, spec, record and logs of the job lie."""
        return self.directory / FOLDER

    @property
    def job_name(self) -> str:
        """The job's name in the queue."""
        return job_name(self.token)

    def write(self) -> Path:
        """Write the spec and the probe to the job's folder; the path of the spec."""
        atomic.write_text(self.folder / self.probe, self.token)
        atomic.write_text(self.folder / SPEC_NAME, self.model_dump_json(indent=2) + "\n")
        return self.folder / SPEC_NAME

    @classmethod
    def read(cls, path: str | Path) -> JobSpec:
        """The spec in this file; ProfileError if it is none."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ProfileError(f"the job's description {path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise ProfileError(f"{path} does not describe a job: {error.errors()[0]['msg']}") from None


def make_spec(
    profile: Profile,
    *,
    name: str,
    kind: Literal["ranks", "command"],
    command: tuple[str, ...] | list[str],
    directory: Path,
    nodes: int = 0,
    ranks_per_node: int = 0,
    threads_per_rank: int = 0,
    environment: dict[str, str] | None = None,
    afterwards: tuple[str, ...] | list[str] = (),
) -> JobSpec:
    """The spec of a job at a facility; zeros take the profile's values.

    Raises
    ------
    ProfileError : more nodes than a job may have, or more ranks than a node has GPUs.
    """
    nodes, ranks = job_size(profile, nodes, ranks_per_node) if kind == "ranks" else (1, 1)
    return JobSpec(
        name=name,
        kind=kind,
        command=tuple(command),
        wrapper=_wrapper(profile, directory, environment or {}, gpus=profile.gpus_per_node > 0),
        workdir=str(Path.cwd()),
        afterwards=tuple(afterwards),
        directory=directory.absolute(),
        nodes=nodes,
        ranks_per_node=ranks,
        threads_per_rank=threads_per_rank,
        environment=environment or {},
        profile=profile.name,
        gpus_per_node=min(ranks, profile.gpus_per_node),
        cpus_per_rank=profile.cpus(threads_per_rank),
        interface=profile.network.interface,
        scratch=profile.scratch,
        staging=profile.staging,
        requeue=profile.requeue,
        max_attempts=profile.max_attempts,
        signal_seconds=profile.signal_seconds,
    )


def job_size(profile: Profile, nodes: int = 0, ranks_per_node: int = 0) -> tuple[int, int]:
    """Nodes and ranks per node of a job of ranks; zeros take the profile's values.

    Raises
    ------
    ProfileError : more nodes than a job may have, or more ranks than a node has GPUs.
    """
    nodes, ranks = nodes or profile.nodes, ranks_per_node or profile.ranks
    if profile.max_nodes and nodes > profile.max_nodes:
        raise ProfileError(
            f"nodes {nodes} is more than the {profile.max_nodes} of profile {profile.name} ({profile.source})"
        )
    if profile.gpus_per_node and ranks > profile.gpus_per_node:
        raise ProfileError(
            f"ranks_per_node {ranks} is more than the {profile.gpus_per_node} GPUs of a node (profile {profile.source})"
        )
    return nodes, ranks


def _wrapper(profile: Profile, directory: Path, environment: dict[str, str], *, gpus: bool) -> tuple[str, ...]:
    """`apptainer exec` with all that the image must see; empty without a container."""
    box = profile.container
    if box is None:
        return ()
    places = dict.fromkeys((*box.binds, environment.get("DATA_PATH") or str(directory.absolute())))
    options = [*(["--nv"] if gpus else []), *(f"--bind={place}" for place in places), *box.options]
    return (box.runtime, "exec", *options, box.image)


def job_name(token: str) -> str:
    """The name in the queue of the job with this token."""
    return f"bhive-{token}"


def shell() -> dict[str, str]:
    """Variables of this shell that a job of its command needs, with absolute paths."""
    found = {name: os.environ[name] for name in SHELL if os.environ.get(name)}
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
