"""What a job has on disk. A file system without quotas knows no limit for one job, so the launcher looks.

Not seen: removed files that are kept by a memory map alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

BLOCK: Final = 512
# Each needs an inode, and space that `st_blocks` does not show.
FILE_BYTES: Final = 4096


def used(folders: Iterable[str], sandbox: int | None = None) -> int:
    """Bytes on disk of all that is below the folders, and of removed files that the sandbox still has open.

    Parameters
    ----------
    sandbox : process id of bubblewrap, or of the project itself without a sandbox; None for none.
    """
    removed = _removed(sandbox) if sandbox is not None else ()
    return sum(map(_below, folders)) + sum(map(_size, removed))


def _below(folder: str) -> int:
    """Links are not followed: what lies behind them is none of this job's."""
    total, waiting = 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += _size(entry.stat(follow_symlinks=False))
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            # removed meanwhile, or a folder that the project has closed to itself
            continue
    return total


def _size(found: os.stat_result) -> int:
    return FILE_BYTES + found.st_blocks * BLOCK


def _removed(sandbox: int) -> Iterator[os.stat_result]:
    seen: set[tuple[int, int]] = set()
    for process in _processes(sandbox):
        try:
            opened = list((process / "fd").iterdir())
        except OSError:
            continue
        for path in opened:
            try:
                # the kernel finds the file behind a link that names no path
                found = path.stat()
            except OSError:
                continue
            key = found.st_dev, found.st_ino
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 0 and key not in seen:
                seen.add(key)
                yield found


def _processes(sandbox: int) -> Iterator[Path]:
    """The folders in /proc of all processes of the sandbox: of one process namespace, whoever started them."""
    try:
        children = Path(f"/proc/{sandbox}/task/{sandbox}/children").read_text(encoding="ascii").split()
        namespace = Path(f"/proc/{children[0]}/ns/pid").readlink()
        if namespace == Path("/proc/self/ns/pid").readlink():
            return
    except (OSError, IndexError):
        return
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_inside = (path / "ns" / "pid").readlink() == namespace
        except OSError:
            continue
        if is_inside:
            yield path
