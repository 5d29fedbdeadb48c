"""How a job ended: its outcome file, when an end that the scheduler reports is final, and the sentence about it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bhive_mltf.ranks.files import read_end
from bhive_mltf.slurm.batch_step.attempts import JobOutcome
from bhive_mltf.slurm.batch_step.verdict import SENTENCES as EXIT_CODES
from bhive_mltf.slurm.batch_step.verdict import ExitCode
from bhive_mltf.slurm.parsing import JobInfo
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState

# How long an end that the site caused, or a job that is not found, has to stay so before it counts.
GRACE_POLLS: Final = 3
GRACE_S: Final = 15.0
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
    JobState.GONE: "the scheduler no longer knows it, and it left no outcome file",
    JobState.FAILED: "it failed",
}


class ConfirmedEnd:
    """Decides when a job is over: a final state that the site caused may be followed by a requeue."""

    def __init__(self) -> None:
        self._doubtful: tuple[JobState, float, int] | None = None

    def is_over(self, record: JobRecord, info: JobInfo, now: float) -> bool:
        """Whether the job is over: at once when the job itself caused its end, else when its state stays for a while.

        now : seconds of a monotonic clock.
        """
        if not info.state.is_final:
            self._doubtful = None
            return False
        written = JobOutcome.read(record.folder, record.token)
        done, requeued = (written.is_done, written.requeued) if written is not None else (False, False)
        returns = requeued and info.state in (JobState.COMPLETED, JobState.FAILED)
        sure = not (info.state.may_requeue or info.state is JobState.GONE or returns)
        if sure or (info.state is JobState.GONE and done):
            return True
        if self._doubtful is None or self._doubtful[0] is not info.state:
            self._doubtful = (info.state, now, 0)
        state, since, polls = self._doubtful
        self._doubtful = (state, since, polls + 1)
        return polls + 1 >= GRACE_POLLS and now - since >= GRACE_S


def is_done(record: JobRecord) -> bool:
    """Whether a job that is over did its work, by its outcome file where the scheduler does not know the job."""
    written = JobOutcome.read(record.folder, record.token)
    if record.state is JobState.GONE:
        return written is not None and written.is_done
    return record.state is JobState.COMPLETED and (written is None or written.is_done)


def failure_sentence(record: JobRecord) -> str:
    """Why a job that is over has no result, the last lines of its log, and where to look."""
    text = f"{end_sentence(record)}; the same command goes on; its log is {record.log}"
    last = tail(record.log)
    return f"{text}, and ends with\n{last}" if last else text


def end_sentence(record: JobRecord) -> str:
    """How a job that is over ended, and why."""
    written = JobOutcome.read(record.folder, record.token)
    what = SENTENCES.get(record.state, f"its state is {record.state.value}")
    if record.state is JobState.COMPLETED:
        what = "it ended without its work being done"
    reason = (written.reason if written is not None else "") or record.message
    if record.state is JobState.FAILED and record.exit_code:
        what = f"it failed with exit code {record.exit_code}"
        if written is None and record.exit_code in EXIT_CODES:
            # a full disk keeps the job from writing its outcome
            reason = EXIT_CODES[ExitCode(record.exit_code)]
    because = f" ({reason})" if reason and reason != "NonZeroExitCode" else ""
    return f"job {record.job_id} of {record.directory} ended as {record.state.value}: {what}{because}"


def tail(path: Path) -> str:
    """The last lines of a log, indented; empty when there is none."""
    text = read_end(path, _TAIL_BYTES).decode("utf-8", "replace")
    return "\n".join(f"    {line}" for line in text.splitlines()[-TAIL_LINES:])
