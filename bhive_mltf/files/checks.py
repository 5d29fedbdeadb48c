"""What a folder, and the machine that looks at it, can do: said before a night is lost."""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bhive_mltf.files import disk

MAX_SKEW_S = 60.0
MIN_FREE_BYTES = 200 * 2**20
MIN_FREE_INODES = 1000
MIN_SHARED_BYTES = 64 * 2**20
_SHARED = Path("/dev/shm")  # noqa: S108 - its size is looked at


class Level(enum.Enum):
    """How much it matters."""

    GOOD = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what it is like."""

    subject: str
    text: str
    level: Level = Level.GOOD


def look_at_folder(folder: Path) -> list[Finding]:
    """Whether results can be written there, and which guarantees the file system gives; makes the folder.

    Leaves nothing behind. What is missing but not needed is a note.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _probe(folder) as probe:
            looks = (_clock, _links, _maps, _kernel_locks)
            room = list(_room(folder))
            return [Finding("folder", f"{folder} can be written"), *room, *(look(probe) for look in looks)]
    except OSError as error:
        return [Finding("folder", str(disk.cannot_write(folder, error)), Level.PROBLEM)]


def look_at_shared_memory(place: Path = _SHARED) -> Finding:
    """Room in /dev/shm, which loader workers and ranks may use; they do without where there is little."""
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding("shared memory", f"{place} cannot be used: {disk.reason(error)}", Level.NOTE)
    level = Level.GOOD if free >= MIN_SHARED_BYTES else Level.NOTE
    return Finding("shared memory", f"{free / 2**20:.0f} MiB are free in {place}", level)


@contextlib.contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    probe = folder / f".check.{secrets.token_hex(4)}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
        yield probe
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _room(folder: Path) -> Iterator[Finding]:
    there = os.statvfs(folder)
    free = there.f_bavail * there.f_frsize
    level = Level.GOOD if free >= MIN_FREE_BYTES else Level.PROBLEM
    more = "" if level is Level.GOOD else ": make room"
    yield Finding("space", f"{free / 1e9:.2f} GB are free in {folder}{more}", level)
    # some file systems have no such number
    if there.f_files and there.f_favail < MIN_FREE_INODES:
        yield Finding("inodes", f"{there.f_favail} files more can be made in {folder}: remove some", Level.PROBLEM)
    elif there.f_files:
        yield Finding("inodes", f"{there.f_favail} files more can be made")


def _clock(probe: Path) -> Finding:
    before = time.time()
    os.utime(probe)
    touched = probe.stat().st_mtime
    # file systems keep whole or even seconds
    skew = max(before - touched - 2, touched - time.time(), 0.0)
    if skew > MAX_SKEW_S:
        return Finding("clock", f"{skew:.0f} s apart from the file server's: have it set", Level.NOTE)
    return Finding("clock", "agrees with the file server's")


def _links(probe: Path) -> Finding:
    other = probe.with_name(f"{probe.name}.link")
    try:
        os.link(probe, other)
    except OSError as error:
        return Finding("hard links", f"none here ({disk.reason(error)}): locks do without", Level.NOTE)
    finally:
        other.unlink(missing_ok=True)
    return Finding("hard links", "work")


def _maps(probe: Path) -> Finding:
    with probe.open("r+b") as file:
        try:
            with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as view:
                good = view[:16] == bytes(16)
        except OSError as error:
            return Finding("mappings", f"none here ({disk.reason(error)}): put training sets elsewhere", Level.PROBLEM)
        if not good:
            return Finding("mappings", "show other bytes than were written: put training sets elsewhere", Level.PROBLEM)
        try:
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).close()
        except OSError as error:
            return Finding("mappings", f"private ones only ({disk.reason(error)}), which is enough", Level.NOTE)
    return Finding("mappings", "work")


def _kernel_locks(probe: Path) -> Finding:
    with probe.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            known = errno.errorcode.get(error.errno or 0, str(error))
            return Finding("kernel locks", f"none here ({known}): locks go by their heartbeat", Level.NOTE)
    return Finding("kernel locks", "work")
