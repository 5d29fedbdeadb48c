"""Which rank failed first, and what a person is told of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from bhive_mltf.errors import RankFailedError
from bhive_mltf.ranks.signals import INTERRUPTED_EXIT_CODE, TrainingInterruptedError
from bhive_mltf.training.rank import LOG_FOLDER, error_path

SHOWN_LINES = 15
_SHOWN_BYTES = 8192

Reasons = Mapping[int, dict[str, Any]]


def log_path(directory: Path, rank: int) -> Path:
    """Where the errors and warnings of a rank go."""
    return directory / LOG_FOLDER / f"rank_{rank}.log"


def explain(
    directory: Path, size: int, failures: Mapping[int, ProcessFailure], what: str = "training"
) -> RankFailedError | TrainingInterruptedError:
    """The error of the rank that failed first, not of those that lost it.

    It names rank, reason and place of the rest; below come the last lines of the rank's traceback, unless it was an
    error of the user, or of its log, if it left no traceback. `what` the ranks did, for a rank that was only stopped.
    """
    if all(failure.exitcode == INTERRUPTED_EXIT_CODE for failure in failures.values()):
        return TrainingInterruptedError(
            f"The {what} in {directory} was stopped by a signal to a rank: the same command goes on."
        )
    reasons = {rank: found for rank in range(size) if (found := _read_reason(directory, rank))}
    rank = _first(size, failures, reasons)
    reason = reasons.get(rank)
    if reason is not None and not reason["lost"]:
        first_line = reason["message"].splitlines()[0] if reason["message"] else ""
        what = f"{reason['kind']}: {first_line}".rstrip(". ")
        where = f"its traceback is in {error_path(directory, rank)}"
        shown = [] if reason.get("by_user") else reason["traceback"].rstrip().splitlines()
    else:
        # the launcher itself kills a rank that does not end
        waited = any("Timed out" in other["message"] for other in reasons.values())
        what = _how_it_ended(None if waited else failures.get(rank))
        where = f"the same command goes on, its last lines are in {log_path(directory, rank)}"
        shown = _last_lines(log_path(directory, rank))
    sentence = f"Rank {rank} of {size} failed ({what}); {where}, and the other ranks have ended."
    return RankFailedError("\n    ".join([sentence, *shown[-SHOWN_LINES:]]))


def _first(size: int, failures: Mapping[int, ProcessFailure], reasons: Reasons) -> int:
    # SIGTERM is what the launcher itself sends to those that are left
    killed = [
        rank for rank, failure in failures.items() if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
    ]
    own = [rank for rank, reason in reasons.items() if not reason["lost"]]
    silent = [rank for rank in range(size) if rank not in reasons]
    own.sort(key=lambda rank: reasons[rank]["time"])
    # errors of its own first: a rank that was killed may have been slow to end when the launcher ended all; then
    # killed by somebody; then whoever is silent while all others lost it
    for candidates in (own, killed, silent if reasons else []):
        if candidates:
            return candidates[0]
    return min(reasons, key=lambda rank: reasons[rank]["time"]) if reasons else min(failures)


def _how_it_ended(failure: ProcessFailure | None) -> str:
    if failure is None:
        return "it stopped answering"
    name = failure.signal_name() if failure.exitcode < 0 else ""
    return f"it was killed by {name}" if name else f"exit code {failure.exitcode}"


def _read_reason(directory: Path, rank: int) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(error_path(directory, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _SHOWN_BYTES, 0))
            return file.read().decode(errors="replace").rstrip().splitlines()
    except OSError:
        return []
