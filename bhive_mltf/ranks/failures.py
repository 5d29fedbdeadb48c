"""Which rank failed first, and the error that says so."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from bhive_mltf.errors import RankFailedError
from bhive_mltf.ranks.files import RankError, error_path, log_path, read_end
from bhive_mltf.ranks.signals import INTERRUPTED_EXIT_CODE, NO_SPACE_EXIT_CODE, TrainingInterruptedError
from bhive_mltf.ranks.time_outs import in_vain, waited_for

SHOWN_LINES = 15
_SHOWN_BYTES = 8192


def explain(
    directory: Path, size: int, failures: Mapping[int, ProcessFailure], what: str = "training"
) -> RankFailedError | TrainingInterruptedError:
    """The error of the rank that failed first, not of those that lost it.

    It names rank, reason and place of the rest; below come the last lines of the rank's traceback, unless it was an
    error of the user, or of its log, if it left no traceback. `what` the ranks did, for a rank that was only stopped.
    """
    if all(failure.exitcode == INTERRUPTED_EXIT_CODE for failure in failures.values()):
        return TrainingInterruptedError(
            f"The {what} in {directory} was stopped by a signal to a rank: the same command goes on"
        )
    reasons = {rank: found for rank in range(size) if (found := RankError.read(directory, rank)) is not None}
    behind = waited_for(directory, size)
    rank = _first(size, failures, reasons, behind)
    reason = reasons.get(rank)
    if reason is not None and not reason.lost:
        what = f"{reason.kind}: {reason.explanation or reason.first_line}".rstrip(". ")
        where = f"its traceback is in {error_path(directory, rank)}"
        shown = [] if reason.by_user else reason.traceback.rstrip().splitlines()
    else:
        # the launcher itself kills a rank that does not end
        what = _how_it_ended(failures.get(rank))
        if rank in behind:
            what = "it stopped answering" if len(behind) == 1 else in_vain(behind)
        where = f"the same command goes on, its last lines are in {log_path(directory, rank)}"
        shown = read_end(log_path(directory, rank), _SHOWN_BYTES).decode(errors="replace").rstrip().splitlines()
    sentence = f"Rank {rank} of {size} failed ({what}); {where}, and the other ranks have ended"
    return RankFailedError("\n    ".join([sentence, *shown[-SHOWN_LINES:]]))


def _first(
    size: int, failures: Mapping[int, ProcessFailure], reasons: Mapping[int, RankError], behind: Sequence[int]
) -> int:
    # SIGTERM is what the launcher itself sends to those that are left
    killed = [
        rank for rank, failure in failures.items() if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
    ]
    own = [rank for rank, reason in reasons.items() if not reason.lost]
    silent = [rank for rank in range(size) if rank not in reasons]
    own.sort(key=lambda rank: reasons[rank].time)
    # errors of its own first: a rank that was killed may have been slow to end when the launcher ended all; then the
    # one that others waited for, since the launcher or NCCL itself kills ranks then; then killed by a signal; then a
    # rank that is silent while all others lost the connection
    for candidates in (own, behind, killed, silent if reasons else []):
        if candidates:
            return candidates[0]
    return min(reasons, key=lambda rank: reasons[rank].time) if reasons else min(failures)


def _how_it_ended(failure: ProcessFailure | None) -> str:
    if failure is None:
        return "it stopped answering"
    if failure.exitcode == NO_SPACE_EXIT_CODE:
        return "no space is left where the outputs go: make room"
    name = failure.signal_name() if failure.exitcode < 0 else ""
    if name == "SIGBUS":
        return f"it was killed by {name}, as where a mapped file cannot be read: try 'bhive-mltf dataset verify'"
    return f"it was killed by {name}" if name else f"exit code {failure.exitcode}"
