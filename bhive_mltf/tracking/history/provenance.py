"""What it takes to run the same code in the same environment again: lock, patch, system. No mlflow here.

`environment.lock` is a requirements file. pip does not keep the hash of the archive that it installed; each line
therefore names, as a comment, the digest of the installed files (`contents`), by which two environments are compared,
and where a package that is in no index came from (`from`).
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import re
import subprocess
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from bhive_mltf.tracking.environment import code_folder, git

LOCK = "environment.lock"
PATCH = "code.patch"
# Files of a checkout that are code; others that git does not know yet may be data or secrets, and stay where they are.
CODE_SUFFIXES = frozenset({".c", ".cfg", ".cpp", ".cu", ".h", ".ini", ".py", ".pyi", ".sh", ".toml", ".yaml", ".yml"})
MAX_PATCH = 20_000_000  # characters
_INSTALLER_FILES = re.compile(r"(?:^|/)(?:INSTALLER|REQUESTED|direct_url\.json|RECORD)$|\.pyc$|^\.\./")
_SLURM = (
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_ACCOUNT",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_QOS",
    "SLURM_NNODES",
    "SLURM_NTASKS",
    "SLURM_RESTART_COUNT",
)
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO", "NCCL_PROTO")
_LINE = re.compile(
    r"^(?P<name>[\w.\-]+)==(?P<version>[^\s#]+)(?:\s+#\s*contents (?P<contents>\w+))?(?:\s+# from (?P<origin>\S+))?"
)


def lock() -> str:
    """All installed packages as lines `name==version  # contents <digest>  # from <URL>`, sorted by name."""
    found: dict[str, tuple[str, str, str]] = {}
    origins: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = str(distribution.metadata["Name"] or "")
        # the first one on the path is the one that is imported; an editable one may have its list of files in another
        known = found.get(normalised(name))
        if name and (known is None or known[1:] == (distribution.version, "")):
            found[normalised(name)] = name, distribution.version, contents(distribution)
            origins[normalised(name)] = origin(distribution) or origins.get(normalised(name), "")
    header = f"# Python {platform.python_version()}, {platform.platform()}"
    lines = (
        f"{name}=={version}"
        + (f"  # contents {digest}" if digest else "")
        + (f"  # from {origins[key]}" if origins[key] else "")
        for key, (name, version, digest) in sorted(found.items())
    )
    return "\n".join([header, *lines]) + "\n"


def contents(distribution: metadata.Distribution) -> str:
    """A digest of what a package installed, alike in all environments; empty for one without a list of its files."""
    record = distribution.read_text("RECORD")
    if not record:
        return ""
    rows = sorted(f"{row[0]} {row[1]}" for row in csv.reader(record.splitlines()) if len(row) > 1)
    lines = [row for row in rows if not _INSTALLER_FILES.search(row.rpartition(" ")[0])]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def origin(distribution: metadata.Distribution) -> str:
    """Where a package was installed from as pip takes it (folder, archive, commit); empty for one of an index."""
    try:
        found = json.loads(distribution.read_text("direct_url.json") or "{}")
        url, commit = found.get("url", ""), found.get("vcs_info", {})
        return f"{commit['vcs']}+{url}@{commit['commit_id']}" if commit else str(url)
    except (ValueError, KeyError, AttributeError):
        return ""


def read_origins(text: str) -> dict[str, str]:
    """Name of each package of a lock that is in no index -> where it came from."""
    matches = filter(None, map(_LINE.match, text.splitlines()))
    return {normalised(m["name"]): m["origin"] for m in matches if m["origin"]}


def read_lock(text: str) -> dict[str, tuple[str, str]]:
    """Name of each package of a lock, as it is compared -> (version, digest of its contents or "")."""
    matches = filter(None, map(_LINE.match, text.splitlines()))
    return {normalised(m["name"]): (m["version"], m["contents"] or "") for m in matches}


def normalised(name: str) -> str:
    """The name of a package as the index knows it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def patch(directory: str | Path | None = None) -> str:
    """What the checkout that holds `directory` (default: this code) has changed since its commit, for `git apply`.

    New files are in it when they are code (`CODE_SUFFIXES`) and not ignored. Empty where nothing changed, without git,
    or for more than `MAX_PATCH` characters. The checkout, its index and its objects stay as they are.
    """
    folder = code_folder(directory)
    root = git(folder, "rev-parse", "--show-toplevel") if folder is not None else None
    if not root:
        return ""
    top = Path(root)
    listed = git(top, "ls-files", "--others", "--exclude-standard", "-z") or ""
    new = [name for name in listed.split("\0") if name and Path(name).suffix in CODE_SUFFIXES]
    changed = git(top, "diff", "HEAD", "--binary", strip=False) or ""
    if not new:
        return changed if len(changed) <= MAX_PATCH else ""
    with tempfile.TemporaryDirectory(prefix="bhive_mltf_") as scratch:
        text = _with_new_files(top, new, Path(scratch))
    return text if len(text) <= MAX_PATCH else ""


def _with_new_files(top: Path, new: list[str], scratch: Path) -> str:
    """The diff with new files, by an index and a store of objects of its own."""
    objects = git(top, "rev-parse", "--git-path", "objects") or ""
    (scratch / "objects").mkdir()
    own = {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(top / objects),
    }
    if git(top, "read-tree", "HEAD", variables=own) is None or git(top, "add", "-u", variables=own) is None:
        return ""
    if git(top, "add", "--", *new, variables=own) is None:
        return ""
    return git(top, "diff", "--cached", "HEAD", "--binary", strip=False, variables=own) or ""


def system() -> dict[str, object]:
    """Operating system, GPU driver, and the SLURM job around this process; what is not there is left out."""
    release: dict[str, str] = {}
    with suppress(OSError):
        release = platform.freedesktop_os_release()
    slurm = {name.removeprefix("SLURM_").lower(): os.environ[name] for name in _SLURM if name in os.environ}
    gpu = {name: os.environ[name] for name in _GPU_VARIABLES if name in os.environ}
    found: dict[str, object] = {
        "os": release.get("PRETTY_NAME", ""),
        "libc": " ".join(platform.libc_ver()).strip(),
        **driver(),
        "slurm": slurm,
        "variables": gpu,
    }
    return {name: value for name, value in found.items() if value}


def driver() -> dict[str, str]:
    """Version of the NVIDIA driver, and the newest CUDA that it knows; empty without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        version, cuda = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return {}
    return {"driver": version, "driver_cuda": f"{cuda // 1000}.{cuda % 1000 // 10}"}


def apply_patch(checkout: Path, text: str) -> str:
    """Apply a patch to a checkout; what git says when it does not fit, else empty."""
    done = subprocess.run(
        ["git", "-C", str(checkout), "apply", "--binary", "--whitespace=nowarn", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() if done.returncode else ""
