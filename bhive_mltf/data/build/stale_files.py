"""What killed processes left beside a file that they were writing.

Whoever makes a file holds a lock while doing so; the kernel drops it with the process. Temporary files of a target
whose lock is free are therefore nobody's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def temporary_part(target: Path, number: int) -> Path:
    """A path beside `target` for a part of it."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part{number}.tmp")


@contextmanager
def sweeping(target: Path) -> Iterator[None]:
    """Remove what is left of earlier attempts at `target`, unless another process is at it just now."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.lock")
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # A file system without locks refuses too: then leftovers stay.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in target.parent.glob(f".{target.name}.*.tmp"):
                leftover.unlink(missing_ok=True)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)
