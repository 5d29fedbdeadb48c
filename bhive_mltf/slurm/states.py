"""States of a job, every one that SLURM can name."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal, Self

RunStatus = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]


class JobState(StrEnum):
    """SLURM's states, and two of ours.

    UNKNOWN : no answer, or a state that SLURM does not have: never taken for an end.
    GONE : the scheduler answered that it knows no such job, so it neither waits nor runs; how it ended is not known.
    phase : waiting, running or final; empty where it is not known.
    code : SLURM's short form, empty where it has none.
    """

    phase: str
    code: str

    def __new__(cls, name: str, phase: str = "", code: str = "") -> Self:
        """A state with its phase and code; its value is the name."""
        state = str.__new__(cls, name)
        state._value_, state.phase, state.code = name, phase, code
        return state

    UNKNOWN = "UNKNOWN"
    GONE = "GONE", "final"

    PENDING = "PENDING", "waiting", "PD"
    REQUEUED = "REQUEUED", "waiting", "RQ"
    REQUEUE_FED = "REQUEUE_FED", "waiting", "RF"
    REQUEUE_HOLD = "REQUEUE_HOLD", "waiting", "RH"
    SPECIAL_EXIT = "SPECIAL_EXIT", "waiting", "SE"
    RESV_DEL_HOLD = "RESV_DEL_HOLD", "waiting", "RD"

    CONFIGURING = "CONFIGURING", "running", "CF"
    POWER_UP_NODE = "POWER_UP_NODE", "running"
    RUNNING = "RUNNING", "running", "R"
    SUSPENDED = "SUSPENDED", "running", "S"
    STOPPED = "STOPPED", "running", "ST"
    RESIZING = "RESIZING", "running", "RS"
    SIGNALING = "SIGNALING", "running", "SI"
    COMPLETING = "COMPLETING", "running", "CG"
    STAGE_OUT = "STAGE_OUT", "running", "SO"
    UPDATE_DB = "UPDATE_DB", "running", "UD"
    EXPEDITING = "EXPEDITING", "running"

    COMPLETED = "COMPLETED", "final", "CD"
    CANCELLED = "CANCELLED", "final", "CA"
    FAILED = "FAILED", "final", "F"
    TIMEOUT = "TIMEOUT", "final", "TO"
    OUT_OF_MEMORY = "OUT_OF_MEMORY", "final", "OOM"
    DEADLINE = "DEADLINE", "final", "DL"
    NODE_FAIL = "NODE_FAIL", "final", "NF"
    BOOT_FAIL = "BOOT_FAIL", "final", "BF"
    LAUNCH_FAILED = "LAUNCH_FAILED", "final", "LF"
    PREEMPTED = "PREEMPTED", "final", "PR"
    REVOKED = "REVOKED", "final", "RV"

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
        word = str(_CODES.get(word, word))
        return cls(word) if word in cls.__members__ and word not in _OURS else cls.UNKNOWN

    @property
    def is_waiting(self) -> bool:
        """It has no nodes now, and will get some; held jobs wait too."""
        return self.phase == "waiting"

    @property
    def is_held(self) -> bool:
        """It waits until somebody releases it by `scontrol release`."""
        return self in (JobState.REQUEUE_HOLD, JobState.SPECIAL_EXIT, JobState.RESV_DEL_HOLD)

    @property
    def is_running(self) -> bool:
        """It has nodes; a job that is COMPLETING still does, and is not over."""
        return self.phase == "running"

    @property
    def is_final(self) -> bool:
        """It neither waits nor runs, and stays so unless it `may_requeue`."""
        return self.phase == "final"

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
_CODES: Final = {state.code: state for state in JobState if state.code}
