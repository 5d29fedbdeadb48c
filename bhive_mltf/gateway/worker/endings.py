"""How a submission ends, from how its job ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bhive_mltf.gateway.store.tables import State
from bhive_mltf.slurm import outcome
from bhive_mltf.slurm.batch_step.attempts import JobOutcome
from bhive_mltf.slurm.batch_step.verdict import ExitCode
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState

_CODES: Final = {
    JobState.TIMEOUT: "time_limit",
    JobState.DEADLINE: "time_limit",
    JobState.OUT_OF_MEMORY: "out_of_memory",
    JobState.NODE_FAIL: "node_lost",
    JobState.BOOT_FAIL: "node_lost",
    JobState.LAUNCH_FAILED: "node_lost",
    JobState.GONE: "gone",
}
_EXIT_CODES: Final = {int(ExitCode.BAD_NODE): "bad_node", int(ExitCode.NO_SPACE): "disk_full"}
_CANCELLED: Final = frozenset({JobState.CANCELLED, JobState.PREEMPTED, JobState.REVOKED})

_HINT: Final = ": ask for more hours, or hand in with 'resume' a project that goes on from its checkpoints"


@dataclass(frozen=True)
class Ending:
    """A final state, its code for programs, and its sentence for people."""

    state: State
    code: str = ""
    reason: str = ""


def ending_of(record: JobRecord, *, is_wanted: bool, resume: bool = False) -> Ending:
    """The ending of a job that is over.

    is_wanted : somebody asked for its end; a job that had done its work before that stays a success.
    resume : the project goes on from its checkpoints.
    """
    if outcome.is_done(record):
        return Ending(State.SUCCEEDED)
    if record.state in _CANCELLED or is_wanted:
        by = "cancelled by its owner" if is_wanted else "the scheduler, or an operator, ended it"
        return Ending(State.CANCELLED, "cancelled", by)
    written = JobOutcome.read(record.folder, record.token)
    # where the scheduler ended it, how its ranks died of that is no reason
    told = "" if record.state in _CODES else (written.reason if written is not None else "") or record.message
    reason = told or outcome.SENTENCES.get(record.state, record.state.value)
    code = _CODES.get(record.state) or _EXIT_CODES.get(record.exit_code or 0, "project_exit")
    if code == "time_limit":
        reason += ": it wrote no checkpoint since its last start" if resume else _HINT
    return Ending(State.FAILED, code, reason)
