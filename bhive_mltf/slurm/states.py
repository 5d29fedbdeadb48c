"""States of a job, every one that SLURM can name."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

RunStatus = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]


class JobState(StrEnum):
    """SLURM's states, and two of ours.

    UNKNOWN : no answer, or a state that SLURM does not have: never taken for an end.
    GONE : the scheduler answered that it knows no such job, so it neither waits nor runs; how it ended is not known.
    """

    UNKNOWN = "UNKNOWN"
    GONE = "GONE"

    PENDING = "PENDING"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"

    CONFIGURING = "CONFIGURING"
    POWER_UP_NODE = "POWER_UP_NODE"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"
    RESIZING = "RESIZING"
    SIGNALING = "SIGNALING"
    COMPLETING = "COMPLETING"
    STAGE_OUT = "STAGE_OUT"
    UPDATE_DB = "UPDATE_DB"
    EXPEDITING = "EXPEDITING"

    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DEADLINE = "DEADLINE"
    NODE_FAIL = "NODE_FAIL"
    BOOT_FAIL = "BOOT_FAIL"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    PREEMPTED = "PREEMPTED"
    REVOKED = "REVOKED"

    @classmethod
    def parse(cls, text: str) -> JobState:
        """The state in a column of squeue, sacct or scontrol.

        Short codes, details (`CANCELLED by 1000`) and names cut by a narrow column (`OUT_OF_ME+`) are understood;
        everything else is UNKNOWN.
        """
        word = text.split(maxsplit=1)[0].upper() if text.split() else ""
        if word.endswith("+"):
            fits = [state for state in cls if state not in _OURS and state.startswith(word[:-1])]
            return fits[0] if len(fits) == 1 else cls.UNKNOWN
        word = _CODES.get(word, word)
        return cls(word) if word in cls.__members__ and word not in _OURS else cls.UNKNOWN

    @property
    def is_waiting(self) -> bool:
        """It has no nodes now, and will get some; held jobs wait too."""
        return self in _WAITING

    @property
    def is_held(self) -> bool:
        """It waits until somebody releases it by `scontrol release`."""
        return self in (JobState.REQUEUE_HOLD, JobState.SPECIAL_EXIT, JobState.RESV_DEL_HOLD)

    @property
    def is_running(self) -> bool:
        """It has nodes; a job that is COMPLETING still does, and is not over."""
        return self in _RUNNING

    @property
    def is_final(self) -> bool:
        """It neither waits nor runs, and stays so unless it `may_requeue`."""
        return self in _FINAL

    @property
    def may_requeue(self) -> bool:
        """The site took its nodes away: SLURM puts such a job back into the queue when it allows that."""
        return self in (JobState.NODE_FAIL, JobState.BOOT_FAIL, JobState.LAUNCH_FAILED, JobState.PREEMPTED)

    @property
    def run_status(self) -> RunStatus | None:
        """What an MLflow run of such a job should say; None where the job's state does not tell."""
        if self in (JobState.UNKNOWN, JobState.GONE):
            return None
        if self.is_waiting:
            return "SCHEDULED"
        if self.is_running:
            return "RUNNING"
        if self is JobState.COMPLETED:
            return "FINISHED"
        return "KILLED" if self in (JobState.CANCELLED, JobState.PREEMPTED, JobState.REVOKED) else "FAILED"


_OURS: Final = (JobState.UNKNOWN, JobState.GONE)
_WAITING: Final = frozenset(
    {
        JobState.PENDING,
        JobState.REQUEUED,
        JobState.REQUEUE_FED,
        JobState.REQUEUE_HOLD,
        JobState.SPECIAL_EXIT,
        JobState.RESV_DEL_HOLD,
    }
)
_RUNNING: Final = frozenset(
    {
        JobState.CONFIGURING,
        JobState.POWER_UP_NODE,
        JobState.RUNNING,
        JobState.SUSPENDED,
        JobState.STOPPED,
        JobState.RESIZING,
        JobState.SIGNALING,
        JobState.COMPLETING,
        JobState.STAGE_OUT,
        JobState.UPDATE_DB,
        JobState.EXPEDITING,
    }
)
_FINAL: Final = frozenset(JobState) - _WAITING - _RUNNING - {JobState.UNKNOWN}
_CODES: Final = {
    "BF": "BOOT_FAIL",
    "CA": "CANCELLED",
    "CD": "COMPLETED",
    "CF": "CONFIGURING",
    "CG": "COMPLETING",
    "DL": "DEADLINE",
    "F": "FAILED",
    "LF": "LAUNCH_FAILED",
    "NF": "NODE_FAIL",
    "OOM": "OUT_OF_MEMORY",
    "PD": "PENDING",
    "PR": "PREEMPTED",
    "R": "RUNNING",
    "RD": "RESV_DEL_HOLD",
    "RF": "REQUEUE_FED",
    "RH": "REQUEUE_HOLD",
    "RQ": "REQUEUED",
    "RS": "RESIZING",
    "RV": "REVOKED",
    "S": "SUSPENDED",
    "SE": "SPECIAL_EXIT",
    "SI": "SIGNALING",
    "SO": "STAGE_OUT",
    "ST": "STOPPED",
    "TO": "TIMEOUT",
    "UD": "UPDATE_DB",
}
