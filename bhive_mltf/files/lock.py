"""A lock on an output directory that works on network file systems and outlives no process.

The lock is a small JSON file (host, process, token) that its holder touches every few seconds. It is taken over when
its process is known to be gone (`holder`), or, where that cannot be known, when nobody has touched it for a minute.
Clocks decide nothing: what is looked at is whether the time of the file changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bhive_mltf.errors import DiskError, LockedError
from bhive_mltf.files import disk
from bhive_mltf.files.holder import Holder, Life, boot_id

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
# The command locks this folder of an output directory; the process that works there locks the directory itself.
COMMAND_FOLDER = ".command"
HEARTBEAT_S = 5.0
STALE_AFTER_S = 60.0
# A file without a holder in it is being written, where there are no hard links, or its writer has died.
UNREADABLE_FOR_S = 3.0

# Open files of the locks of this process. A fork would share them, and keep the kernel's lock after the holder's end.
_held: set[int] = set()


def _forget() -> None:
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


@dataclass(frozen=True)
class _Look:
    """A lock file at one moment; `touched` is its time of change in ns, by the clock of the file system."""

    content: bytes
    touched: int

    @classmethod
    def at(cls, path: Path) -> _Look | None:
        """None where there is no lock."""
        try:
            # opening makes a network file system ask its server, a stat alone may not
            with path.open("rb") as file:
                return cls(file.read(4096), os.fstat(file.fileno()).st_mtime_ns)
        except FileNotFoundError:
            return None


def read_holder(directory: str | Path) -> Holder | None:
    """Who holds the lock of `directory`; None when nobody does or the file cannot be read."""
    with contextlib.suppress(OSError):
        look = _Look.at(Path(directory) / LOCK_NAME)
        return None if look is None else Holder.parse(look.content)
    return None


def is_held(directory: str | Path) -> bool:
    """Whether a live process holds the lock of `directory`, or may: the lock was touched lately.

    "Lately" goes by the clock of the file system. A lock that looks old is watched for two heartbeats, since that clock
    may have been stepped.
    """
    path = Path(directory) / LOCK_NAME
    with contextlib.suppress(OSError):
        look = _Look.at(path)
        holder = None if look is None else Holder.parse(look.content)
        if look is None or holder is None:
            return False
        life = _life(holder, path)
        if life is not Life.UNKNOWN:
            return life is Life.ALIVE
        return _age(path, look) < STALE_AFTER_S or _is_touched(path, look)
    # a folder that we cannot look into, or not write to, says nothing of its lock
    return read_holder(directory) is not None


def _age(path: Path, look: _Look) -> float:
    probe = path.with_name(f"{LOCK_NAME}.probe.{secrets.token_hex(8)}")
    try:
        probe.touch()
        return (probe.stat().st_mtime_ns - look.touched) / 1e9
    finally:
        probe.unlink(missing_ok=True)


def _is_touched(path: Path, look: _Look) -> bool:
    deadline = time.monotonic() + 2 * HEARTBEAT_S + 1
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if _Look.at(path) != look:
            return True
    return False


def _life(holder: Holder, path: Path) -> Life:
    """By the identity of the process; for one in another container of this machine, by the kernel's lock too."""
    life = holder.life()
    if life is Life.UNKNOWN and holder.boot and holder.boot == boot_id() and _is_flocked(path):
        return Life.ALIVE
    return life


def _is_flocked(path: Path) -> bool:
    """Whether a process of this machine has the kernel's lock of the file; False says nothing, it may not have one."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


class DirectoryLock:
    """Context manager: this process alone works in `directory`.

    A process whose lock was taken over all the same (it was stopped, or cut off from the file server, for longer than
    a minute) ends at once when it finds out: somebody else writes there now.

    Parameters
    ----------
    directory : created if missing.
    wait_s : how long to wait for another holder; None waits for ever.

    Raises
    ------
    LockedError : another live process still holds the lock after `wait_s` seconds; names host and process.
    DiskError : the lock cannot be made there.
    """

    def __init__(self, directory: str | Path, wait_s: float | None = 0.0) -> None:
        self.directory = Path(directory)
        self.path = self.directory / LOCK_NAME
        self.wait_s = wait_s
        self._holder = Holder.this_process()
        self._released = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen: tuple[_Look, float] | None = None
        self._flock = -1

    def __enter__(self) -> Self:
        deadline = None if self.wait_s is None else time.monotonic() + self.wait_s
        told = False
        with self._telling():
            self.directory.mkdir(parents=True, exist_ok=True)
            while not self._make():
                self._remove_if_stale()
                if deadline is not None and time.monotonic() >= deadline:
                    raise LockedError(self._sentence())
                if not told:
                    logger.warning("%s; waiting for it", self._sentence())
                    told = True
                time.sleep(0.5)
        self._thread = threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._released.set()
        if self._thread is not None:
            # a file server that is away must not keep the process
            self._thread.join(timeout=HEARTBEAT_S)
        with contextlib.suppress(OSError):
            if read_holder(self.directory) == self._holder:
                self.path.unlink(missing_ok=True)
        if self._flock in _held:
            _held.discard(self._flock)
            os.close(self._flock)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except DiskError:
            raise
        except OSError as error:
            raise disk.cannot_write(self.path, error, "the lock") from error

    def _make(self) -> bool:
        """Make the lock file; False if there is one."""
        mine = self.path.with_name(f"{LOCK_NAME}.{self._holder.key}")
        try:
            mine.write_bytes(self._holder.dump())
            # creation and content in one step, on every network file system that has hard links
            os.link(mine, self.path)
        except OSError as error:
            if read_holder(self.directory) == self._holder:
                return True  # the answer of the file server was lost
            if isinstance(error, FileExistsError):
                return False
            if not mine.exists():
                raise
            return self._create()
        finally:
            with contextlib.suppress(OSError):
                mine.unlink(missing_ok=True)
        return True

    def _create(self) -> bool:
        """The same where there are no hard links."""
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(handle, self._holder.dump())
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        # whoever saw it empty for long has taken it over
        return read_holder(self.directory) == self._holder

    def _remove_if_stale(self) -> None:
        look = _Look.at(self.path)
        if look is None or not self._is_stale(look):
            return
        # one process at a time removes a lock, so that nobody removes the new one for the old one
        turn = self.path.with_name(f"{LOCK_NAME}.takeover")
        try:
            turn.mkdir()
        except FileExistsError:
            with contextlib.suppress(OSError):
                if _age(turn, _Look(b"", turn.stat().st_mtime_ns)) > STALE_AFTER_S:
                    turn.rmdir()
            return
        try:
            if _Look.at(self.path) == look:
                self.path.unlink(missing_ok=True)
        finally:
            with contextlib.suppress(OSError):
                turn.rmdir()

    def _is_stale(self, look: _Look) -> bool:
        holder = Holder.parse(look.content)
        life = Life.UNKNOWN if holder is None else _life(holder, self.path)
        if life is not Life.UNKNOWN:
            return life is Life.GONE
        now = time.monotonic()
        if self._seen is None or self._seen[0] != look:
            self._seen = (look, now)
        return now - self._seen[1] > (UNREADABLE_FOR_S if holder is None else STALE_AFTER_S)

    def _beat(self) -> None:
        self._keep_flock()
        while not self._released.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                if self._is_lost() and not self._released.wait(1.0) and self._is_lost():
                    self._end_process()
                self._touch()
                self._keep_flock()

    def _touch(self) -> None:
        try:
            os.utime(self.path)
        except FileNotFoundError:
            raise
        except OSError:
            # no times can be set there: writing the same bytes in place changes the time too
            with self.path.open("r+b") as file:
                file.write(self._holder.dump())

    def _keep_flock(self) -> None:
        """The kernel's lock, as a sign of life to the containers of this machine; in vain on some file systems."""
        with contextlib.suppress(OSError):
            if self._flock < 0:
                self._flock = os.open(self.path, os.O_RDWR)
                _held.add(self._flock)
            fcntl.flock(self._flock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _is_lost(self) -> bool:
        look = _Look.at(self.path)
        holder = None if look is None else Holder.parse(look.content)
        return holder is not None and holder != self._holder

    def _end_process(self) -> None:
        logger.critical(
            "%s was taken over by %s, since this process had not touched its lock for %.0f s: this process ends, let "
            "the other one go on",
            self.directory,
            self._who(),
            STALE_AFTER_S,
        )
        logging.shutdown()
        os._exit(1)

    def _sentence(self) -> str:
        return f"{self.directory} is in use by {self._who()}: wait for it to end, or stop it there"

    def _who(self) -> str:
        holder = read_holder(self.directory)
        return f"process {holder.pid} on {holder.host}" if holder else "another process"
