"""`gateway.yml`: what an operator decides, read once at the start of each process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bhive_mltf.config.yaml_file import read_mapping
from bhive_mltf.errors import ConfigError

# Signatures that a provider may use; never one that is made with a secret both sides know, and never `none`.
ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
GIB: Final = 2**30
MIB: Final = 2**20


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Provider(_Frozen):
    """The sign-on service, known by its discovery document."""

    issuer: str
    """Compared exactly with the claim `iss`."""
    audiences: tuple[str, ...] = Field(min_length=1)
    """Values of `aud` that are this gateway."""
    cli_client: str
    """Public client of the device flow."""
    web_client: str = ""
    """Client of the page (code flow with PKCE); empty: nobody signs in at the page."""
    web_secret_file: Path | None = None
    """File with the secret of that client, where it has one."""
    clients: tuple[str, ...] = ()
    """Further clients whose tokens are accepted (`azp` or `client_id`)."""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    scopes: tuple[str, ...] = ("openid", "offline_access")
    roles_claim: str = "roles"
    """Where a token names the roles of a person: `cern_roles`, `resource_access.mltf.roles`."""
    allow_http: bool = False
    """A provider without TLS, on this machine only: for development."""

    @field_validator("algorithms")
    @classmethod
    def _check_algorithms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or set(value) - set(ALGORITHMS):
            raise ValueError(f"must be some of {', '.join(ALGORITHMS)}")
        return value

    @property
    def accepted_clients(self) -> tuple[str, ...]:
        """Clients whose tokens are accepted."""
        return tuple(name for name in (self.cli_client, self.web_client, *self.clients) if name)


class Role(_Frozen):
    """What a role may do; a person without any role may do nothing."""

    profiles: tuple[str, ...] = ()
    admin: bool = False
    gpu_hours: float = Field(default=100.0, ge=0)
    """GPU hours of jobs that are not over, all together."""
    jobs: int = Field(default=20, ge=0)
    """Jobs that are not over."""


class Builds(_Frozen):
    """How environments are built from what projects ask for, on the host of the worker."""

    index_url: str
    """The one package index: https://..., or file:///... for a folder of wheels."""
    index_hosts: tuple[str, ...] = ()
    """Further hosts, or host:port, that serve the files of that index."""
    certificates: Path | None = None
    """File of the authorities that the index is trusted by; None: those that uv brings along."""
    pythons: dict[str, Path] = Field(min_length=1)
    """Interpreters by version, such as `3.11: /usr/bin/python3.11`, at the same path on the nodes; the first is taken
    where a project names none."""
    uv: Path | None = None
    """The program uv; None: beside the interpreter of the worker, or on PATH."""
    minutes: float = Field(default=15.0, gt=0)
    """How long a build may take."""
    at_once: int = Field(default=2, ge=1)
    """Builds at the same time."""
    environment_gb: float = Field(default=20.0, gt=0)
    """Largest environment."""
    all_gb: float = Field(default=200.0, gt=0)
    """All environments together: those that no job needs go first, the longest unused before others."""
    cache_gb: float = Field(default=50.0, gt=0)
    """Wheels that uv keeps; environments have the same files by hard links."""

    @field_validator("index_url")
    @classmethod
    def _check_index(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme == "file":
            if not parts.path.startswith("/") or parts.netloc:
                raise ValueError("must be file:///, followed by the path of a folder")
        elif parts.scheme not in ("https", "http") or not parts.hostname:
            raise ValueError("must begin with https:// or file:///")
        elif parts.username is not None:
            raise ValueError("must not hold a password: this file is no secret")
        return value

    @field_validator("pythons")
    @classmethod
    def _check_pythons(cls, value: dict[str, Path]) -> dict[str, Path]:
        for version, path in value.items():
            if not re.fullmatch(r"3\.\d+", version) or not path.is_absolute():
                raise ValueError(f"{version!r} must be a version such as '3.11', with an absolute path")
        return value


class JobProfile(_Frozen):
    """A kind of job that people may ask for, on top of a facility profile."""

    description: str = ""
    facility: str
    """Name or path of the facility profile, see `bhive_mltf.slurm.profiles`."""
    runtime: Literal["bubblewrap", "none"] = "bubblewrap"
    """`none` is no isolation at all: refused unless `allow_no_sandbox` is set."""
    network: Literal["own", "shared"] = "own"
    """`own`: only the tracking server is reached, by the relay."""
    environment: Path
    """Prepared Python environment; its `bin` comes first on PATH."""
    environments: dict[str, Path] = Field(default_factory=dict)
    """Further prepared environments, which jobs ask for by `profile:NAME`."""
    builds: bool = False
    """Whether jobs may have an environment that is built from files of their project, see `Builds`."""
    read_only: tuple[Path, ...] = ()
    """Further folders that the job sees, such as data, and the installation of Python below the environment."""
    max_hours: float = Field(default=12.0, gt=0)
    max_nodes: int = Field(default=1, ge=1)
    """More than one needs `network: shared`: nodes of a job find each other by it."""
    max_attempts: int = Field(default=10, ge=1)
    """How often a job that goes on from its checkpoints is started, time limits and lost nodes together."""
    gpus_per_node: int = Field(default=0, ge=0)
    cpus_per_node: int = Field(default=1, ge=1)
    """Together with the GPUs also the largest number of ranks per node."""
    disk_gb: float = Field(default=500.0, gt=0)
    """All that a job may have on disk, its log included; a job with more is ended."""
    processes_per_node: int = Field(default=16_384, ge=16)
    """Processes and threads of a job on a node."""
    variables: dict[str, str] = Field(default_factory=dict)
    """Variables of the project's command."""
    launcher_variables: dict[str, str] = Field(default_factory=dict)
    """Variables of the batch step outside the sandbox, such as PYTHONPATH of a development checkout."""

    @property
    def max_ranks(self) -> int:
        """Ranks that a node takes."""
        return self.gpus_per_node or self.cpus_per_node

    @model_validator(mode="after")
    def _check_network(self) -> JobProfile:
        if self.max_nodes > 1 and self.network == "own":
            raise ValueError("max_nodes is more than 1, which needs network: shared")
        return self


class Limits(_Frozen):
    """Sizes of what people upload."""

    archive_bytes: int = GIB
    file_bytes: int = 256 * MIB
    members: int = 20_000
    ratio: int = 200
    """Largest ratio of an upload to what was sent compressed."""
    path_bytes: int = 240
    depth: int = 16
    inspection_s: float = 60.0


class Settings(_Frozen):
    """A gateway.

    Files named here are absolute. Secrets are files as well: nothing secret stands in this document.
    """

    public_url: str
    """What clients type, without a slash at the end; also the issuer of the gateway's own tokens."""
    tracking_url: str
    """The MLflow server as API, worker and nodes reach it."""
    tracking_public_url: str = ""
    """The MLflow server as people reach it; empty: the same."""
    spool: Path
    """Uploaded projects and the folders of jobs; on the file system of the nodes."""
    database_url: str
    keys: Path
    """Folder of signing keys, one PEM file each; the newest by name signs."""
    provider: Provider
    roles: dict[str, Role]
    profiles: dict[str, JobProfile]
    limits: Limits = Limits()
    builds: Builds | None = None
    """None: jobs run in prepared environments only."""
    tick_s: float = Field(default=5.0, gt=0)
    """Time between two looks of the worker."""
    submit_timeout_s: float = Field(default=60.0, gt=0)
    """How long one sbatch may take."""
    token_s: float = Field(default=3600.0, gt=0)
    """Life of a tracking token; that of a job is renewed at half of it."""
    allow_no_sandbox: bool = False

    @field_validator("spool", "keys")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError("must be an absolute path")
        return value

    @field_validator("public_url", "tracking_url", "tracking_public_url")
    @classmethod
    def _bare(cls, value: str) -> str:
        return value.rstrip("/")

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        for name, role in self.roles.items():
            if unknown := [profile for profile in role.profiles if profile not in self.profiles]:
                raise ValueError(f"role {name} names the profile {unknown[0]}, which is not in `profiles`")
        bare = [name for name, profile in self.profiles.items() if profile.runtime == "none"]
        if bare and not self.allow_no_sandbox:
            raise ValueError(f"profile {bare[0]} has no sandbox: set `runtime: bubblewrap`")
        if self.builds is None and (wanting := [name for name, one in self.profiles.items() if one.builds]):
            raise ValueError(f"profile {wanting[0]} has `builds: true`, which needs the section `builds`")
        if not self.provider.issuer.startswith("https://") and not self.provider.allow_http:
            raise ValueError("the issuer of the provider must begin with https://")
        return self

    @property
    def tracking_people_url(self) -> str:
        """The MLflow server as people reach it."""
        return self.tracking_public_url or self.tracking_url

    def job_folder(self, submission: str) -> Path:
        """The folder of a job."""
        return self.spool / "jobs" / submission

    @property
    def environments(self) -> Path:
        """The folder of environments that were built."""
        return self.spool / "environments"


def load(path: str | Path) -> Settings:
    """Read `gateway.yml`.

    Raises
    ------
    ConfigError : the file cannot be read, or a value in it cannot be; names the file and the key.
    """
    values: dict[str, Any] = read_mapping(Path(path))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        where = f"`{key}`: " if key else ""
        raise ConfigError(f"{path}: {where}{first['msg'].removeprefix('Value error, ')}") from None
