"""The folders of environments, by a hash of their content, and when each was used last.

environments/ready/<key>       whole and read-only; `mltf.json` in it says what it is, its time when it was used
environments/building/<key>    being built, moved to `ready` at the end; what a killed build left is removed
environments/building/cache    wheels that uv keeps, the same files as in the environments where the disk can link them
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bhive_mltf.gateway.inside import disk

LOCK_NAME: Final = "requirements.lock"
_FACTS: Final = "mltf.json"
_CACHE: Final = "cache"
_REMOVED: Final = "removed-"
_LOCK: Final = ".lock"


@dataclass(frozen=True)
class Entry:
    """An environment that is ready: bytes on disk, and when it was used last."""

    key: str
    bytes: int
    last_used: float


def key_of(lock: str, **facts: str) -> str:
    """The name of an environment: a hash of its lock and of all else that decides what is installed."""
    text = json.dumps({**facts, "lock": lock}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """The environments below a folder."""

    def __init__(self, folder: Path) -> None:
        self.ready, self.building = folder / "ready", folder / "building"

    @property
    def cache(self) -> Path:
        """The folder of uv's cache."""
        return self.building / _CACHE

    def make(self) -> None:
        """Make the folders."""
        for folder in (self.ready, self.cache):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, key: str) -> Path:
        """Where an environment lies once it is ready."""
        return self.ready / key

    def is_ready(self, key: str) -> bool:
        """Whether it is there, as a whole."""
        return (self.path(key) / _FACTS).is_file()

    def use(self, key: str) -> None:
        """Write down that it is used now."""
        os.utime(self.path(key) / _FACTS)

    def entries(self) -> list[Entry]:
        """All that are ready, the longest unused first."""
        found = []
        for path in self.ready.glob(f"*/{_FACTS}"):
            with contextlib.suppress(OSError, ValueError):
                size = int(json.loads(path.read_text(encoding="utf-8"))["bytes"])
                found.append(Entry(path.parent.name, size, path.stat().st_mtime))
        return sorted(found, key=lambda one: one.last_used)

    @contextlib.contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[bool]:
        """Whether this thread has the lock of that name now; it does not wait."""
        handle = os.open(self.building / f"{name}{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def begin(self, key: str) -> Path:
        """An empty place for a build; call it with the lock of the key."""
        path = self.building / key
        remove(path)
        return path

    def finish(self, key: str, lock: str, facts: Mapping[str, Any]) -> int:
        """Close what was built and give it its name, as a whole or not at all; its bytes on disk."""
        built = self.building / key
        (built / LOCK_NAME).write_text(lock, encoding="utf-8")
        size = disk.used((str(built),))
        (built / _FACTS).write_text(json.dumps({**facts, "bytes": size}, indent=2) + "\n", encoding="utf-8")
        _change_modes(built, writable=False)
        _flush(built)
        # a folder that goes to another one needs to be written for that
        built.chmod(0o755)
        built.rename(self.path(key))
        self.path(key).chmod(0o555)
        return size

    def set_aside(self, key: str) -> None:
        """Take an environment away at once; `sweep` removes it from the disk."""
        path = self.path(key)
        path.chmod(0o755)
        path.rename(self.building / f"{_REMOVED}{key}-{secrets.token_hex(4)}")

    def sweep(self, largest_cache: int) -> None:
        """Remove what was set aside, what killed builds left, and the cache if it has become too large."""
        for path in self.building.iterdir():
            if path.is_dir() and path.name != _CACHE and not path.name.startswith(_REMOVED):
                with self.lock(path.name) as is_mine:
                    if is_mine:
                        remove(path)
        if disk.used((str(self.cache),)) > largest_cache:
            # builds share this lock: none uses the cache while it goes
            with self.lock(_CACHE) as is_mine:
                if is_mine:
                    self.cache.rename(self.building / f"{_REMOVED}{_CACHE}-{secrets.token_hex(4)}")
                    self.cache.mkdir(mode=0o700)
        for path in self.building.glob(f"{_REMOVED}*"):
            remove(path)


def remove(path: Path) -> None:
    """Remove a folder and all below it, read-only or not."""
    if not path.is_symlink() and path.is_dir():
        with contextlib.suppress(FileNotFoundError):
            _change_modes(path, writable=True)
        shutil.rmtree(path, ignore_errors=True)


def _change_modes(top: Path, *, writable: bool) -> None:
    """Let all below a folder be read only; or let the folders be written again, so that they can be removed."""
    for folder, names, files in os.walk(top):
        if writable:
            for name in (".", *names):
                path = Path(folder, name)
                if not path.is_symlink():
                    path.chmod(0o700)
            continue
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o555)
        Path(folder).chmod(0o555)


def _flush(path: Path) -> None:
    """Have all that was written to this file system on its disk: after a power cut a name stands for whole files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(handle)
    finally:
        os.close(handle)
