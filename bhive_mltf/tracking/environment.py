"""Facts about where and with what a training runs, as plain dictionaries. No mlflow here."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import bhive_mltf

PACKAGES = (
    "awkward",
    "law",
    "luigi",
    "lz4",
    "mlflow",
    "numpy",
    "pyarrow",
    "pydantic",
    "torch",
    "triton",
    "uproot",
)
_GIT_TIMEOUT = 10.0  # s


def packages(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of ours, installed or not, and of those packages that are installed."""
    versions = {"bhive_mltf": bhive_mltf.__version__}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state(directory: str | Path | None = None) -> dict[str, str | bool]:
    """`commit`, `branch`, `dirty` of the checkout that holds `directory` (default: this code).

    Empty without git, outside a checkout, or for a directory that git does not follow, such as an environment inside
    another project's checkout.
    """
    folder = Path(__file__).resolve().parent if directory is None else Path(directory)
    if _git(folder, "ls-files", "--", ".") in (None, ""):
        return {}
    commit, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    if commit is None or status is None:
        return {}
    return {"commit": commit, "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "", "dirty": status != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints, None if it cannot."""
    program = shutil.which("git")
    if program is None:
        return None
    try:
        # reading must not take the locks of a checkout in which someone works
        done = subprocess.run(
            [program, "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command_line() -> str:
    """The command of this process, fit for a shell."""
    return shlex.join(sys.orig_argv)


def machine() -> dict[str, str | int]:
    """Host, system and interpreter."""
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "directory": str(Path.cwd()),
    }


def torch_state() -> dict[str, object]:
    """Version, build and threads of torch, and the devices that this process sees; imports torch."""
    import torch

    state: dict[str, object] = {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda or "",
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "devices": [],
    }
    if torch.cuda.is_available():
        state["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        state["devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return state


def facts(with_torch: bool = False) -> dict[str, object]:
    """All of the above by topic; `with_torch` in processes that use it anyway."""
    return {
        "command": command_line(),
        "git": git_state(),
        "machine": machine(),
        "packages": packages(),
        **({"torch": torch_state()} if with_torch else {}),
    }


def tags(topics: dict[str, object]) -> dict[str, str]:
    """The few facts by which runs are searched, as tags."""
    found = {"bhive_mltf.command": topics.get("command")}
    for topic, keys in {"git": ("commit", "branch", "dirty"), "machine": ("host", "python")}.items():
        values = topics.get(topic)
        if isinstance(values, dict):
            found.update({f"bhive_mltf.{topic}.{key}": values.get(key) for key in keys})
    versions = topics.get("packages")
    if isinstance(versions, dict):
        found.update({f"bhive_mltf.version.{key}": versions.get(key) for key in ("bhive_mltf", "torch", "mlflow")})
    return {key: str(value) for key, value in found.items() if value not in (None, "")}
