"""A project folder as a tar archive: the same bytes for the same files on any machine, and no secrets in it."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from pathspec import GitIgnoreSpec

from bhive_mltf_client.errors import ClientError

IGNORE_NAME = ".mltfignore"
IGNORED = (".git", "mlruns", "mlartifacts", "mlflow.db", "__pycache__", "*.pyc", ".venv", "node_modules")
SECRET_NAMES = (
    *(".env*", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12", "*.pfx", ".netrc"),
    *(".aws", ".ssh", ".kube", "tokens.json", "x509up_*", "credentials.json", ".git-credentials"),
)
_SECRET_CONTENT = re.compile(
    rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----|eyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{20,}"
)
_LOOKED_AT_BYTES = 2**20


def collect(folder: Path, allowed: Iterable[str] = ()) -> list[tuple[str, Path]]:
    """The files of a project by their names in the archive, sorted by bytes.

    Parameters
    ----------
    allowed : paths below the folder that are packed although they look like secrets.

    Raises
    ------
    ClientError : a link or device, or a file that looks like a secret; names it.
    """
    if not folder.is_dir():
        raise ClientError(f"{folder} is no folder: give the folder of the project")
    ignore = GitIgnoreSpec.from_lines([*IGNORED, *_ignore_lines(folder)])
    permitted = set(allowed)
    found: list[tuple[str, Path]] = []
    for place, folders, files in os.walk(folder):
        here = Path(place).relative_to(folder)
        kept = []
        for name in folders:
            path = Path(place, name)
            relative = (here / name).as_posix()
            if ignore.match_file(f"{relative}/") or (path / "pyvenv.cfg").exists():
                continue
            if path.is_symlink():
                raise ClientError(f"{relative} is a link: replace it by the folder itself, or name it in {IGNORE_NAME}")
            kept.append(name)
        folders[:] = kept
        for name in files:
            relative = (here / name).as_posix()
            if not ignore.match_file(relative):
                _check(Path(place, name), relative, permitted)
                found.append((relative, Path(place, name)))
    return sorted(found, key=lambda one: os.fsencode(one[0]))


def pack(folder: Path, target: Path, allowed: Iterable[str] = ()) -> str:
    """Write the project's archive to `target`; its SHA-256.

    Raises
    ------
    ClientError : see `collect`.
    """
    members = collect(folder, allowed)
    if not members:
        raise ClientError(f"{folder} has no files to hand in")
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, path in members:
            content = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uid, member.gid = len(content), 0, 0, 0
            member.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            try:
                archive.addfile(member, io.BytesIO(content))
            except (ValueError, UnicodeError):
                raise ClientError(f"{name} has a name that no archive takes: make it shorter") from None
    return _digest(target)


def _check(path: Path, name: str, permitted: set[str]) -> None:
    if path.is_symlink() or not path.is_file():
        raise ClientError(f"{name} is a link or a device: replace it by a file, or name it in {IGNORE_NAME}")
    if name in permitted:
        return
    parts = name.split("/")
    with path.open("rb") as file:
        looks_secret = _SECRET_CONTENT.search(file.read(_LOOKED_AT_BYTES)) is not None
    if looks_secret or any(fnmatchcase(part.lower(), pattern) for part in parts for pattern in SECRET_NAMES):
        raise ClientError(f"{name} looks like a secret: name it in {IGNORE_NAME}, or give --allow {name}")


def _ignore_lines(folder: Path) -> list[str]:
    try:
        return (folder / IGNORE_NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
