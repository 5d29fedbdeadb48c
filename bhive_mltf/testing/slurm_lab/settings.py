"""What a lab is made of."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from bhive_mltf.errors import SlurmError
from bhive_mltf.files import atomic
from bhive_mltf.slurm.batch_step.allocation import is_free
from bhive_mltf.slurm.local_cluster import default_directory, slurm_conf

STATE_NAME = "lab.json"
NODES = ("n1", "n2")
FIRST_PORT = 16800
PORT_STEP = 10
# munge's socket path has to fit into the 108 bytes of a socket address
LONGEST_DIRECTORY = 80


@dataclass(frozen=True)
class Settings:
    """A lab before it is started.

    port : first of ten consecutive ports; 0 takes the first ten that are free.
    names : `namespace`: nodes are called n1 and n2, by namespaces for host names; `address`: they are called by their
        loopback addresses, which needs no privilege; empty: whichever works.
    accounting : with slurmdbd and MariaDB, so that `sacct` works.
    keep_jobs_s : how long the controller knows a job that is over.
    """

    directory: Path = field(default_factory=default_directory)
    port: int = 0
    names: Literal["", "namespace", "address"] = ""
    accounting: bool = False
    cpus: int = 4
    memory_mb: int = 8000
    gpus: int = 2
    keep_jobs_s: int = 300
    user: str = field(default_factory=getpass.getuser)

    @property
    def slurm_conf(self) -> Path:
        """What SLURM_CONF has to be."""
        return slurm_conf(self.directory)

    @property
    def is_root(self) -> bool:
        """Whether the daemons run as root."""
        return self.user == "root"

    @property
    def nodes(self) -> tuple[tuple[str, str], ...]:
        """Name and address of each node."""
        names = NODES if self.names == "namespace" else ("127.0.0.1", "127.0.0.2")
        # one for all: a step answers to where its request came from, which is 127.0.0.1 for every program here
        return tuple((name, "127.0.0.1") for name in names)

    def folder(self, name: str) -> Path:
        """A folder of the lab: etc, run, log, state, dev, database."""
        return self.directory / name

    def write(self) -> None:
        """Leave the settings where `read` finds them."""
        content = {**asdict(self), "directory": str(self.directory)}
        atomic.write_json(self.directory / STATE_NAME, content)

    @classmethod
    def read(cls, directory: Path) -> Settings | None:
        """The settings of the lab in this directory; None when there is none."""
        try:
            content = json.loads((directory / STATE_NAME).read_text(encoding="utf-8"))
            return cls(**{**content, "directory": Path(content["directory"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def with_free_port(self) -> Settings:
        """The same with ten free ports; SlurmError when those asked for are in use."""
        if self.port:
            if not _are_free(self.port):
                raise SlurmError(
                    f"some port from {self.port} to {self.port + PORT_STEP - 1} is in use: give another --port"
                )
            return self
        for port in range(FIRST_PORT, FIRST_PORT + 100 * PORT_STEP, PORT_STEP):
            if _are_free(port):
                return replace(self, port=port)
        raise SlurmError(f"no ten free ports from {FIRST_PORT} on: stop other clusters on this machine")


def _are_free(first: int) -> bool:
    return all(map(is_free, range(first, first + PORT_STEP)))
