"""Facility profiles: what a site's jobs need, as one YAML file per site and kind of node.

profile = read_profile("mltf-a6000", hours=12)
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bhive_mltf.config.loader import own_folder
from bhive_mltf.config.yaml_file import find_named, names_in, read_mapping
from bhive_mltf.errors import ProfileError, nearest

FOLDER_VARIABLE: Final = "BHIVE_FACILITY_DIR"
# A value of an #SBATCH line: no blanks, quotes or comments, which sbatch and a shell read differently.
_PLAIN: Final = re.compile(r"[^\s'\"\\#;]*")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What the script says itself.
_OURS: Final = frozenset(
    (
        *("job-name", "comment", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "time", "chdir"),
        *("partition", "account", "qos", "constraint", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task"),
        *("gres", "gpus", "gpus-per-node", "mem", "mem-per-cpu", "mem-per-gpu", "array", "wrap", "parsable", "wait"),
        "export",
    )
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Container(_Frozen):
    """Jobs run in an Apptainer image."""

    image: str
    """Path or URL of the image; variables are those of the node."""
    binds: tuple[str, ...] = ()
    """`source[:target[:options]]`; several nodes need SLURM's client programs, its configuration and munge's socket."""
    options: tuple[str, ...] = ()
    """Further options of `apptainer exec`."""
    runtime: str = "apptainer"


class Network(_Frozen):
    """How ranks of several nodes talk."""

    interface: str = ""
    """Network interface of both NCCL's bootstrap and gloo; empty: their choice."""
    variables: dict[str, str] = Field(default_factory=dict)
    """Further variables (`NCCL_IB_HCA`, `NCCL_IB_GID_INDEX`, ...)."""


class Profile(_Frozen):
    """A facility profile; a value that cannot be is a ProfileError that names file and key.

    Sizes are in GB (1e9 bytes rounded up to MB for SLURM), times in the unit of their name.
    """

    name: str
    source: str
    description: str = ""
    cluster: Literal["", "lab"] = ""
    """`lab`: the cluster that `bhive-mltf slurm lab up` has started on this machine."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    options: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further options of sbatch by their long names; true stands for an option without value."""

    nodes: int = Field(default=1, ge=1)
    max_nodes: int = Field(default=0, ge=0)
    """Nodes that a job may have; 0: the scheduler decides."""
    ranks_per_node: int = Field(default=0, ge=0)
    """0: one per GPU, else one."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs that a node has; a job asks for one per rank."""
    gpu_style: Literal["gres", "gpus-per-node", "none"] = "gres"
    """`--gres=gpu:N`, `--gpus-per-node=N`, or not asked for at all (whole nodes)."""
    gpu_type: str = ""
    cpus_per_rank: int = Field(default=0, ge=0)
    cpus_per_gpu: int = Field(default=0, ge=0)
    memory_per_cpu_gb: float = Field(default=0, ge=0)
    memory_per_gpu_gb: float = Field(default=0, ge=0)
    hours: float = Field(default=1, gt=0)
    max_hours: float = Field(default=0, ge=0)
    """Longest time of the partition; 0: the scheduler decides."""

    modules: tuple[str, ...] = ()
    venv: str = ""
    setup: tuple[str, ...] = ()
    """Shell lines before Python starts; the job fails when one of them does."""
    container: Container | None = None
    python: str = ""
    """Interpreter of the job; empty: that of the environment, or this one when none is named."""
    environment: dict[str, str] = Field(default_factory=dict)
    pass_environment: tuple[str, ...] = ("X509_USER_PROXY",)
    """Variables handed from the submitting shell to the job; others are not."""

    scratch: str = ""
    """Fast directory of a node for temporary files (`$SLURM_TMPDIR`, `/local/$USER`)."""
    staging: str = ""
    """Fast directory of a node for copies of the training sets, made before the ranks start and removed after them."""
    network: Network = Network()

    requeue: bool = True
    """Continue in the same job after the time limit, preemption and lost nodes."""
    max_attempts: int = Field(default=20, ge=1)
    signal_seconds: int = Field(default=120, ge=10)
    """Warning before the time limit: what saving a checkpoint takes, and SLURM's granularity of about half a minute."""
    poll_seconds: float = Field(default=10, gt=0)
    """Shortest time between two questions to the scheduler."""
    accounting: bool | Literal["auto"] = "auto"
    """Whether `sacct` works here; auto: found out at its first use."""

    @field_validator("partition", "account", "qos", "constraint", "gpu_type")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not _PLAIN.fullmatch(value):
            raise ValueError(f"{value!r} has blanks, quotes or comment signs, which no option of sbatch takes")
        return value

    @field_validator("options")
    @classmethod
    def _check_options(cls, value: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for name, setting in value.items():
            if not re.fullmatch(r"[a-z][a-z-]+", name):
                raise ValueError(
                    f"{name!r} is no long option of sbatch: give it without dashes in front, as `exclusive`"
                )
            if name in _OURS:
                raise ValueError(f"{name} has a key of its own in a profile, or is decided by the job")
            if not _PLAIN.fullmatch(str(setting)):
                raise ValueError(f"{name}: {setting!r} has blanks, quotes or comment signs")
        return value

    @field_validator("environment", "pass_environment")
    @classmethod
    def _check_names(cls, value: Any) -> Any:  # noqa: ANN401 - a mapping or a tuple, by their keys
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Profile:
        for wrong, sentence in (
            (
                self.memory_per_cpu_gb and self.memory_per_gpu_gb,
                "memory_per_cpu_gb and memory_per_gpu_gb exclude each other",
            ),
            (self.cpus_per_rank and self.cpus_per_gpu, "cpus_per_rank and cpus_per_gpu exclude each other"),
            (self.memory_per_gpu_gb and not self.gpus_per_node, "memory_per_gpu_gb needs gpus_per_node"),
            (self.cpus_per_gpu and not self.gpus_per_node, "cpus_per_gpu needs gpus_per_node"),
            (self.gpu_type and not self.gpus_per_node, "gpu_type needs gpus_per_node"),
            (self.container and self.venv, "container and venv exclude each other"),
            (
                self.gpus_per_node and self.ranks_per_node > self.gpus_per_node,
                f"ranks_per_node {self.ranks_per_node} is more than the {self.gpus_per_node} GPUs of a node",
            ),
            (
                self.max_nodes and self.nodes > self.max_nodes,
                f"nodes {self.nodes} is more than the {self.max_nodes} that a job may have",
            ),
            (
                self.max_hours and self.hours > self.max_hours,
                f"hours {self.hours:g} is more than the {self.max_hours:g} of partition {self.partition or 'default'}",
            ),
            (
                self.signal_seconds >= self.hours * 3600,
                f"signal_seconds {self.signal_seconds} is not below the time limit of {self.hours * 3600:g} s",
            ),
        ):
            if wrong:
                raise ValueError(sentence)
        return self

    @property
    def ranks(self) -> int:
        """Ranks per node that a job has when nothing else is asked for."""
        return self.ranks_per_node or self.gpus_per_node or 1

    def cpus(self, threads_per_rank: int = 0) -> int:
        """CPUs of a rank, enough for its threads."""
        return max(self.cpus_per_rank or self.cpus_per_gpu or 1, threads_per_rank)


KEYS: Final = tuple(name for name in Profile.model_fields if name not in ("name", "source"))


def read_profile(name_or_path: str, **overrides: Any) -> Profile:  # noqa: ANN401 - pydantic checks them
    """Read and check a profile.

    Parameters
    ----------
    name_or_path : `mltf-a6000`, or a path of a file that ends in .yml or has a separator.
    overrides : values of keys that take the place of the file's; None leaves the file's.

    Raises
    ------
    ProfileError : there is no such profile, or something in it or in the overrides cannot be.
    """
    path = find_profile(name_or_path)
    values = read_mapping(path)
    _refuse_unknown(values, f"profile {path}")
    asked = {key: value for key, value in overrides.items() if value is not None}
    _refuse_unknown(asked, "options of a job")
    try:
        profile = Profile.model_validate({**values, **asked, "name": path.stem, "source": str(path)})
    except ValidationError as error:
        raise ProfileError(_sentence(error, path, asked)) from None
    return profile if profile.python else profile.model_copy(update={"python": _interpreter(profile)})


def find_profile(name_or_path: str) -> Path:
    """The file of a profile; ProfileError with the searched folders and the nearest names when there is none."""
    text = name_or_path.strip()
    found = find_named(text, folders())
    if found is not None:
        return found
    searched = " and ".join(map(str, folders())) or f"no folder ({FOLDER_VARIABLE} names one)"
    names = ", ".join(nearest(Path(os.path.expandvars(text)).expanduser().stem, available())) or "none"
    raise ProfileError(f"there is no profile {text!r} in {searched}; nearest: {names}; or give the path of a file")


def folders() -> tuple[Path, ...]:
    """Where profiles are looked for by name: `$BHIVE_FACILITY_DIR`, then our own `configs/facility/`."""
    site, own = os.environ.get(FOLDER_VARIABLE), own_folder()
    return (*([Path(site)] if site else []), *([own / "facility"] if own else []))


def available() -> tuple[str, ...]:
    """Names that `read_profile` knows."""
    return names_in(folders())


def _refuse_unknown(values: dict[str, Any], where: str) -> None:
    for key in values:
        if key not in KEYS:
            close = ", ".join(nearest(key, KEYS, limit=3))
            raise ProfileError(f"{where}: `{key}` is no key of a profile; nearest: {close}; all: {', '.join(KEYS)}")


def _sentence(error: ValidationError, path: Path, asked: dict[str, Any]) -> str:
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"]]
    message = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{first['input']!r}: {first['msg']}"
    if not keys:
        changed = ", ".join(f"{key} {value}" for key, value in asked.items())
        return f"profile {path}{f' with {changed}' if changed else ''}: {message}"
    if first["type"] == "extra_forbidden":
        there = Container.model_fields if keys[0] == "container" else Network.model_fields
        return f"profile {path}: `{'.'.join(keys)}` is no key; there are {', '.join(there)}"
    where = "option of a job" if keys[0] in asked else f"profile {path}"
    return f"{where}: {'.'.join(keys)}: {message}"


def _interpreter(profile: Profile) -> str:
    if profile.container is not None:
        return "python3"
    return "python" if profile.venv or profile.modules or profile.setup else sys.executable
