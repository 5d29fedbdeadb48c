"""What a job says of itself in files: its progress, how it ended, the tail of its log."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

from bhive_mltf.ranks.files import RankProgress
from bhive_mltf.slurm.batch_step.verdict import SENTENCES as EXIT_CODES
from bhive_mltf.slurm.batch_step.verdict import ExitCode
from bhive_mltf.slurm.job import OUTCOME_NAME
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState

TAIL_LINES: Final = 15
_TAIL_BYTES: Final = 20_000
SENTENCES: Final = {
    JobState.TIMEOUT: "it reached its time limit",
    JobState.OUT_OF_MEMORY: "it needed more memory than it had asked for: ask for more per CPU or GPU in the profile",
    JobState.NODE_FAIL: "one of its nodes failed, and it was not put back into the queue",
    JobState.BOOT_FAIL: "one of its nodes did not start, and it was not put back into the queue",
    JobState.LAUNCH_FAILED: "it could not be started on its nodes",
    JobState.PREEMPTED: "another job took its nodes, and it was not put back into the queue",
    JobState.DEADLINE: "its deadline passed",
    JobState.CANCELLED: "it was cancelled",
    JobState.REVOKED: "another cluster of the federation took it",
    JobState.GONE: "the scheduler no longer knows it, and it left no word of its end",
    JobState.FAILED: "it failed",
}


class Progress(RankProgress):
    """How far the ranks are, as a sentence."""

    def sentence(self, now: float | None = None) -> str:
        """Epoch, step, rate and time left, in one line."""
        parts = []
        if self.epoch is not None:
            parts.append(f"epoch {self.epoch} of {self.of_epochs}" if self.of_epochs else f"epoch {self.epoch}")
        if self.step is not None:
            parts.append(f"step {self.step:,}")
        if self.jets_per_s:
            parts.append(f"{self.jets_per_s:,.0f} jets/s")
        if self.eta_s is not None:
            parts.append(f"{duration(self.eta_s)} left")
        silent = (time.time() if now is None else now) - self.time
        if silent > 300 and self.time:
            parts.append(f"nothing new for {duration(silent)}")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 3 h`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def own_word(record: JobRecord) -> dict[str, Any]:
    """What the job wrote when it ended (`outcome`, `reason`, `requeued`, ...); empty when it did not."""
    content = _json(record.folder / OUTCOME_NAME)
    return content if content is not None and content.get("token") == record.token else {}


def is_done(record: JobRecord) -> bool:
    """Whether a job that is over did what it was for, by its own word where the scheduler has none."""
    word = own_word(record)
    if record.state is JobState.GONE:
        return word.get("outcome") == "done"
    return record.state is JobState.COMPLETED and word.get("outcome", "done") == "done"


def sentence(record: JobRecord) -> str:
    """Why a job that is over has no result, what it said last, and where to look."""
    word = own_word(record)
    what = SENTENCES.get(record.state, f"its state is {record.state.value}")
    if record.state is JobState.COMPLETED:
        what = "it ended without its work being done"
    reason = word.get("reason") or record.message
    if record.state is JobState.FAILED and record.exit_code:
        what = f"it failed with exit code {record.exit_code}"
        if not word and record.exit_code in EXIT_CODES:
            # a full disk keeps the job from writing its word
            reason = EXIT_CODES[ExitCode(record.exit_code)]
    told = f" ({reason})" if reason and reason != "NonZeroExitCode" else ""
    where = f"job {record.job_id} of {record.directory}"
    text = f"{where} ended as {record.state.value}: {what}{told}; the same command goes on; its log is {record.log}"
    last = tail(record.log)
    return f"{text}, and ends with\n{last}" if last else text


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, indented; empty when there is none."""
    try:
        with path.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(log.tell() - _TAIL_BYTES, 0))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
