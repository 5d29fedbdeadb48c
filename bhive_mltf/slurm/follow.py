"""Following a job until it is over: polling the scheduler, showing progress, requeueing after a time limit."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from typing import Final

from bhive_mltf.errors import JobFailedError, ProfileError, QueryFailedError, SlurmError
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.ranks.files import RankProgress
from bhive_mltf.slurm import dispatch, outcome
from bhive_mltf.slurm.batch_step.attempts import JobOutcome
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.display import Display, choose_display
from bhive_mltf.slurm.interrupts import Detached, Interrupts
from bhive_mltf.slurm.job import SPEC_NAME, JobSpec
from bhive_mltf.slurm.outcome import ConfirmedEnd
from bhive_mltf.slurm.parsing import JobInfo
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState

logger = logging.getLogger(__name__)

# The job's own files are looked at this often; they cost the scheduler nothing.
LOOK_S: Final = 1.0
# While nothing changes, questions to the scheduler grow rarer by SLOWER, up to RAREST times the shortest interval.
SLOWER: Final = 1.5
RAREST: Final = 6.0
# A place in the queue is asked for less often: that question covers the jobs of all users.
POSITION_EVERY_S: Final = 30.0


def follow(
    record: JobRecord,
    client: Slurm,
    *,
    poll_s: float = 10.0,
    display: Display | None = None,
    clock: Interrupts | None = None,
) -> JobRecord:
    """Return when the job has done its work.

    Parameters
    ----------
    poll_s : shortest time between two questions to the scheduler.

    Raises
    ------
    JobFailedError : the job is over without having done its work; with its state, its reason, the tail of its log. Its
        MLflow run is closed.
    Detached : Ctrl-C; the job goes on, or was cancelled when that was confirmed.
    """
    with contextlib.closing(display or choose_display()) as shown, clock or Interrupts() as interrupts:
        return _Follower(record, client, poll_s, shown, interrupts).run()


@dataclass
class _Follower:
    """One job and its display."""

    record: JobRecord
    client: Slurm
    poll_s: float
    display: Display
    clock: Interrupts

    def __post_init__(self) -> None:
        self._interval = self.poll_s
        self._next = 0.0
        self._position_at = -POSITION_EVERY_S
        self._position: int | None = None
        self._silent_since: float | None = None
        self._confirmed = ConfirmedEnd()
        self._seen: object = None
        self._outcome_time: float | None = None

    def run(self) -> JobRecord:
        while not self.record.is_over:
            if self.clock.count:
                self._interrupted()
            if self.clock.now() >= self._next or self._has_new_outcome():
                self._poll()
            if not self.record.is_over:
                self._show_progress()
                self.clock.wait(min(LOOK_S, max(self._next - self.clock.now(), 0.05)))
        if outcome.is_done(self.record):
            return self.record
        # whoever owned the run of the job may be gone without a word, or never have been there
        dispatch.close_run(self.record)
        raise JobFailedError(outcome.failure_sentence(self.record))

    def _poll(self) -> None:
        try:
            self.record, info = dispatch.refresh(self.record, self.client)
        except QueryFailedError as error:
            self._no_answer(error)
            return
        finally:
            self._next = self.clock.now() + self._interval
            self._interval = min(self._interval * SLOWER, self.poll_s * RAREST)
        self._answered(info)

    def _answered(self, info: JobInfo) -> None:
        if self._silent_since is not None:
            self.display.say("the scheduler answers again")
            self._silent_since = None
        self.record, done = dispatch.release_once(self.record, info, self.client)
        if done:
            self._soon(done)
            return
        if info.state.is_waiting and self.clock.now() - self._position_at >= POSITION_EVERY_S:
            self._position_at = self.clock.now()
            self._position = self.client.position(info.job_id, info.partition)
        self.display.state(replace(info, position=self._position) if info.state.is_waiting else info)
        if (key := (info.state, info.restarts)) != self._seen:
            self._seen = key
            self._interval, self._next = self.poll_s, self.clock.now() + self.poll_s
        if self._confirmed.is_over(self.record, info, self.clock.now()):
            self._end(info)

    def _end(self, info: JobInfo) -> None:
        if info.state is JobState.TIMEOUT:
            self.record, done = requeue_after_timeout(self.record, self.client)
            if done:
                self._soon(done)
                return
        if not self.record.is_over:
            self.record = dispatch.end(self.record, info)

    def _soon(self, done: str) -> None:
        """Tell what was done for the job, and ask for it at once."""
        self.display.say(done)
        self._interval, self._next = self.poll_s, 0.0

    def _no_answer(self, error: QueryFailedError) -> None:
        if self._silent_since is None:
            self._silent_since = self.clock.now()
            self.display.say(f"{error}; the job may go on, asking again")

    def _has_new_outcome(self) -> bool:
        """Whether the job has just written how it ended."""
        written = JobOutcome.read(self.record.folder, self.record.token)
        before, self._outcome_time = self._outcome_time, None if written is None else written.time
        return self._outcome_time is not None and self._outcome_time != before

    def _show_progress(self) -> None:
        if self.record.state.is_running and (progress := RankProgress.read(self.record.folder)) is not None:
            self.display.progress(progress)

    def _interrupted(self) -> None:
        job = self.record.job_id
        self.display.say(f"leaving job {job}; Ctrl-C again to cancel it")
        # no live line while the answer is typed
        twice = self.clock.came_twice()
        self.display.close()
        if twice and self.clock.confirms(f"cancel job {job} of {self.record.directory}?"):
            self._cancel()
            raise Detached(f"job {job} was cancelled")
        raise Detached(
            f"job {job} goes on: the same command attaches to it again, 'bhive-mltf slurm cancel {job}' ends it"
        )

    def _cancel(self) -> None:
        try:
            dispatch.cancel(self.record, self.client)
        except SlurmError as error:
            self.display.say(f"job {self.record.job_id} may not be cancelled: {error}")


def requeue_after_timeout(record: JobRecord, client: Slurm) -> tuple[JobRecord, str]:
    """Requeue a job that its time limit ended before it had saved; the record, and what was done, empty for nothing.

    Only when another attempt is left and the ranks got further than at the time limit before. A lock lets one command
    at a time do it.
    """
    try:
        spec = JobSpec.read(record.folder / SPEC_NAME)
        with DirectoryLock(record.folder, wait_s=None):
            record = JobRecord.read(record.directory) or record
            client.forget()
            record, info = dispatch.refresh(record, client)
            if info.state is not JobState.TIMEOUT:
                return record, "another command put it back into the queue"
            progress = RankProgress.read(record.folder)
            step = progress.step if progress is not None and progress.step is not None else 0
            if not _makes_sense(record, spec, step) or record.job_id is None:
                return record, ""
            client.requeue(record.job_id)
            record = record.changed(timeout_step=step, state=JobState.PENDING, ended=None)
    except QueryFailedError as error:
        return record, f"{error}; asking again"
    except (SlurmError, ProfileError) as error:
        logger.warning("the job reached its time limit and is not put back into the queue: %s", error)
        return record, ""
    return record, f"job {record.job_id} reached its time limit before it had saved: back in the queue"


def _makes_sense(record: JobRecord, spec: JobSpec, step: int) -> bool:
    goes_on = spec.kind == "ranks" and spec.requeue and spec.token == record.token
    return goes_on and record.restarts + 1 < spec.max_attempts and step > record.timeout_step
