"""Which ranks others waited for in vain, from what those others left. No torch here.

gloo raises an error in the rank that waits. NCCL's watchdog writes a line to its log and ends it by SIGABRT, so that
the rank that waited looks like the one that failed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bhive_mltf.ranks.files import RankError, log_path, read_end

_GLOO = "Timed out"
_WATCHDOG = re.compile(rb"Watchdog caught collective operation timeout: \w+\(SeqNum=(\d+)")
_READ_BYTES = 2**20  # stack traces of all threads follow the line


def log_sizes(directory: Path, size: int) -> dict[int, int]:
    """Bytes of the logs of so many ranks, as they are now."""
    paths = {rank: log_path(directory, rank) for rank in range(size)}
    return {rank: path.stat().st_size for rank, path in paths.items() if path.exists()}


def waited_for(directory: Path, size: int, sizes: Mapping[int, int] | None = None) -> Sequence[int]:
    """The ranks that are behind, where others gave up waiting for them; none where nobody did.

    Those are the ranks that did not wait themselves; if all did, those whose operation has the smallest number.

    Parameters
    ----------
    sizes : where the logs of this start of the ranks begin, for logs that are added to.
    """
    numbers = {rank: _waited(directory, rank, (sizes or {}).get(rank, 0)) for rank in range(size)}
    waiting = {rank: number for rank, number in numbers.items() if number is not None}
    if not waiting:
        return ()
    if len(waiting) < size:
        return tuple(rank for rank in range(size) if rank not in waiting)
    least = min(waiting.values())
    return () if least == max(waiting.values()) else tuple(rank for rank in waiting if waiting[rank] == least)


def in_vain(behind: Sequence[int]) -> str:
    """A clause about those ranks."""
    who = f"rank {behind[0]}" if len(behind) == 1 else f"ranks {', '.join(map(str, behind))}"
    return f"{who} stopped answering, others waited in vain"


def _waited(directory: Path, rank: int, start: int) -> int | None:
    """Number of the operation that a rank gave up on, 0 where it is not known; None where it did not."""
    reason = RankError.read(directory, rank)
    found = _WATCHDOG.search(read_end(log_path(directory, rank), _READ_BYTES, start))
    if found is not None:
        return int(found[1])
    return 0 if reason is not None and reason.lost and _GLOO in reason.message else None
