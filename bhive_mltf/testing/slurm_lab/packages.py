"""The Debian packages of a lab."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

from bhive_mltf.errors import SlurmError

# a program -> the package that has it; the small ones, of which no service is started
_BASE: Final = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
_ACCOUNTING: Final = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "mariadb": "mariadb-client-core",
}
_FOLDERS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def program(name: str) -> str | None:
    """The path of a program, also where only root's search path has it."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_FOLDERS)))


def missing(accounting: bool) -> list[str]:
    """Packages that a lab needs and this machine lacks."""
    needed = {**_BASE, **(_ACCOUNTING if accounting else {})}
    return sorted({package for name, package in needed.items() if program(name) is None})


def require(accounting: bool) -> None:
    """SlurmError with the command that installs what is missing."""
    if packages := missing(accounting):
        raise SlurmError(
            f"the lab needs Debian packages that are not installed: {' '.join(packages)}; as root, "
            f"'{' '.join(_command(packages))}' installs them, and so does 'make slurm-up'"
        )


def install(accounting: bool) -> list[str]:
    """Install what is missing with apt-get, as root; the names of the packages.

    Raises
    ------
    SlurmError : this user cannot, or apt-get fails.
    """
    packages = missing(accounting)
    if not packages:
        return []
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        require(accounting)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], _command(packages)):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0 and command[1] != "update":
            raise SlurmError(f"'{' '.join(command)}' failed: {done.stderr.strip().splitlines()[-1:]}")
    require(accounting)
    return packages


def _command(packages: list[str]) -> list[str]:
    return ["apt-get", "install", "-y", "--no-install-recommends", *packages]
