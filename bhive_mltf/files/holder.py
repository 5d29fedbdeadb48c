"""Who holds a lock, and whether that process still lives: by what neither a clock nor a container moves."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_PROC = Path("/proc")


class Life(enum.Enum):
    """What is known of a process."""

    ALIVE = enum.auto()
    GONE = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    process_started : s since 1970, by a clock that may have been stepped since.
    token : `<random>.<boot id>.<namespaces>.<start in ticks since boot>`, unique. Earlier versions, which read these
        four keys and no other, compare it as a whole; their own is `<random>`.
    """

    host: str
    pid: int
    process_started: float
    token: str

    @classmethod
    def this_process(cls) -> Holder:
        """A holder for the calling process, with a token of its own."""
        started = psutil.Process().create_time()
        parts = (secrets.token_hex(8), boot_id(), namespaces(), start_ticks(os.getpid()))
        return cls(socket.gethostname(), os.getpid(), started, ".".join(parts))

    @classmethod
    def parse(cls, content: bytes) -> Holder | None:
        """The holder in the content of a lock; None if it is none."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def dump(self) -> bytes:
        """The content of a lock."""
        return json.dumps(asdict(self)).encode()

    @property
    def key(self) -> str:
        """The random part of the token."""
        return self.token.partition(".")[0]

    @property
    def boot(self) -> str:
        """The boot of the machine that it ran in, empty where the system does not say."""
        return self._identity()[0]

    def life(self) -> Life:
        """Whether the process lives; unknown for one of another machine, boot or container, or of an earlier version.

        The name of the host says nothing: two machines may have the same.
        """
        boot, spaces, ticks = self._identity()
        if not (boot and spaces and ticks) or (boot, spaces) != (boot_id(), namespaces()):
            return Life.UNKNOWN
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return Life.GONE
        except (OSError, OverflowError):
            pass  # somebody else's
        now = start_ticks(self.pid)
        if not now:  # hidden from us
            return Life.UNKNOWN
        return Life.ALIVE if now == ticks and not _is_zombie(self.pid) else Life.GONE

    def _identity(self) -> tuple[str, str, str]:
        parts = self.token.split(".")
        return (parts[1], parts[2], parts[3]) if len(parts) == 4 else ("", "", "")


def boot_id() -> str:
    """Of this boot of this machine; empty where there is none (macOS)."""
    with contextlib.suppress(OSError):
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return ""


def namespaces() -> str:
    """Of process numbers and of times, of this process; empty where there are none."""
    found = []
    for name in ("pid", "time"):
        try:
            found.append(str((_PROC / "self/ns" / name).stat().st_ino))
        except OSError:
            found.append("0")
    return "" if found[0] == "0" else "-".join(found)


def start_ticks(pid: int) -> str:
    """When the process started, in ticks of its clock since boot; empty for one that cannot be seen."""
    return _stat_field(pid, 22)


def _is_zombie(pid: int) -> bool:
    return _stat_field(pid, 3) in ("Z", "X")


def _stat_field(pid: int, number: int) -> str:
    """A field of /proc/PID/stat, counted from 1 as in proc(5)."""
    try:
        # a container that mounts its host's /proc sees the numbers of the host there
        own = os.getpid()
        if pid != own and (_PROC / "self").readlink().name != str(own):
            return ""
        text = (_PROC / ("self" if pid == own else str(pid)) / "stat").read_text()
        # the name, in parentheses, may hold anything
        return text.rpartition(")")[2].split()[number - 3]
    except (OSError, IndexError):
        return ""
