"""A lock on an output directory that works on network file systems and outlives no process.

The lock is a small JSON file (host, process, token) that its holder touches every few seconds. A lock whose process
is gone from this host, or that nobody on another host has touched for a minute, is taken over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from bhive_mltf.errors import LockedError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
HEARTBEAT_S = 5.0
STALE_AFTER_S = 60.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    pid: int
    process_started: float
    token: str

    @classmethod
    def this_process(cls) -> Holder:
        """A holder for the calling process, with a token of its own."""
        started = psutil.Process().create_time()
        return cls(socket.gethostname(), os.getpid(), started, secrets.token_hex(8))

    def is_gone(self) -> bool:
        """True when the process ran on this host and no longer does."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.process_started) > 1 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


def read_holder(directory: str | Path) -> Holder | None:
    """Who holds the lock of `directory`; None when nobody does or the file cannot be read."""
    try:
        return Holder(**json.loads((Path(directory) / LOCK_NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_held(directory: str | Path) -> bool:
    """Whether a live process holds the lock of `directory`, or one on another host may: it touched it lately.

    "Lately" goes by the clock of the file system, which may not be this host's.
    """
    path = Path(directory) / LOCK_NAME
    holder = read_holder(directory)
    if holder is None or holder.is_gone():
        return False
    if holder.host == socket.gethostname():
        return True
    probe = path.with_name(f"{LOCK_NAME}.probe.{secrets.token_hex(8)}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime < STALE_AFTER_S
    except FileNotFoundError:
        return False
    finally:
        probe.unlink(missing_ok=True)


class DirectoryLock:
    """Context manager: this process alone works in `directory`.

    Parameters
    ----------
    directory : created if missing.
    wait_s : how long to wait for another holder; None waits for ever.

    Raises
    ------
    LockedError : another live process still holds the lock after `wait_s` seconds; names host and process.
    """

    def __init__(self, directory: str | Path, wait_s: float | None = 0.0) -> None:
        self.directory = Path(directory)
        self.path = self.directory / LOCK_NAME
        self.wait_s = wait_s
        self._holder = Holder.this_process()
        self._released = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen: tuple[str, float, float] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        deadline = None if self.wait_s is None else time.monotonic() + self.wait_s
        told = False
        while not self._try_to_take():
            if deadline is not None and time.monotonic() >= deadline:
                raise LockedError(self._sentence())
            if not told:
                logger.warning("%s; waiting for it", self._sentence())
                told = True
            time.sleep(0.5)
        self._thread = threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        if read_holder(self.directory) == self._holder:
            self.path.unlink(missing_ok=True)

    def _try_to_take(self) -> bool:
        mine = self.path.with_name(f"{LOCK_NAME}.{self._holder.token}")
        mine.write_text(json.dumps(self._holder.__dict__))
        try:
            # a hard link is the one creation that is atomic on every network file system
            os.link(mine, self.path)
        except FileExistsError:
            self._remove_if_stale()
            return False
        finally:
            mine.unlink(missing_ok=True)
        return True

    def _remove_if_stale(self) -> None:
        holder = read_holder(self.directory)
        if holder is not None and not holder.is_gone() and not self._is_silent(holder):
            return
        aside = self.path.with_name(f"{LOCK_NAME}.stale.{self._holder.token}")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            moved = json.loads(aside.read_text() or "{}")
            if holder is not None and moved.get("token") != holder.token:
                # another process took the lock over between the look and the rename: give it back
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink(missing_ok=True)

    def _is_silent(self, holder: Holder) -> bool:
        """True when a holder on another host has not touched its lock for a minute, by this host's clock."""
        if holder.host == socket.gethostname():
            return False
        try:
            touched = self.path.stat().st_mtime
        except FileNotFoundError:
            return False
        now = time.monotonic()
        if self._seen is None or self._seen[:2] != (holder.token, touched):
            self._seen = (holder.token, touched, now)
        return now - self._seen[2] > STALE_AFTER_S

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _sentence(self) -> str:
        holder = read_holder(self.directory)
        who = f"process {holder.pid} on {holder.host}" if holder else "another process"
        return f"{self.directory} is in use by {who}: wait for it to end, or stop it there"
