"""When an end of a job is believed."""

from __future__ import annotations

from typing import Final

from bhive_mltf.slurm import outcome
from bhive_mltf.slurm.parsing import JobInfo
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState

# How long an end that the site caused, or a job that is not found, has to stay so before it is believed.
GRACE_POLLS: Final = 3
GRACE_S: Final = 15.0


class Belief:
    """What was seen of one job's end so far."""

    def __init__(self) -> None:
        self._doubtful: tuple[JobState, float, int] | None = None

    def is_over(self, record: JobRecord, info: JobInfo, now: float) -> bool:
        """Whether the job is over: at once when the job itself caused its end, else when it stays so for a while.

        now : seconds of a clock that never goes back.
        """
        if not info.state.is_final:
            self._doubtful = None
            return False
        word = outcome.own_word(record)
        returns = word.get("requeued") and info.state in (JobState.COMPLETED, JobState.FAILED)
        sure = not (info.state.may_requeue or info.state is JobState.GONE or returns)
        if sure or (info.state is JobState.GONE and word.get("outcome") == "done"):
            return True
        if self._doubtful is None or self._doubtful[0] is not info.state:
            self._doubtful = (info.state, now, 0)
        state, since, polls = self._doubtful
        self._doubtful = (state, since, polls + 1)
        return polls + 1 >= GRACE_POLLS and now - since >= GRACE_S
