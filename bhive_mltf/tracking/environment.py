"""Facts about where and with what a training runs, as plain dictionaries. No mlflow here."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import bhive_mltf
from bhive_mltf import compat
from bhive_mltf.tracking.auth import without_secrets

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
    return {"bhive_mltf": bhive_mltf.__version__, **compat.installed(names)}


def git_state(directory: str | Path | None = None) -> dict[str, str | bool]:
    """`commit`, `branch`, `dirty`, `repository`, `checkout` of what holds `directory` (default: this code).

    Empty without git, outside a checkout, or for a directory that git does not follow, such as an environment inside
    another project's checkout.
    """
    folder = code_folder(directory)
    if folder is None:
        return {}
    commit, status = git(folder, "rev-parse", "HEAD"), git(folder, "status", "--porcelain")
    if commit is None or status is None:
        return {}
    return {
        "commit": commit,
        "branch": git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "",
        "dirty": status != "",
        "repository": without_secrets(git(folder, "config", "--get", "remote.origin.url") or ""),
        "checkout": git(folder, "rev-parse", "--show-toplevel") or "",
    }


def code_folder(directory: str | Path | None = None) -> Path | None:
    """`directory` (default: this code) where git follows it, else None."""
    folder = Path(__file__).resolve().parent if directory is None else Path(directory)
    return folder if git(folder, "ls-files", "--", ".") else None


def git(folder: Path, *arguments: str, strip: bool = True, variables: Mapping[str, str] | None = None) -> str | None:
    """What a git command prints, None if it cannot.

    variables : of its environment, in addition.
    """
    program = shutil.which("git")
    if program is None:
        return None
    try:
        # reading must not take the locks of a checkout in which someone works
        done = subprocess.run(
            [program, "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env={**os.environ, **(variables or {})},
            timeout=_GIT_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return done.stdout.strip() if strip else done.stdout


def command_line() -> str:
    """The command of this process, fit for a shell; without secrets."""
    return shlex.join(without_secrets(sys.orig_argv))


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
    """Version, build and threads of torch, NCCL, and the devices that this process sees; imports torch."""
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
        if torch.distributed.is_nccl_available():
            state["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
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
