"""What the worker does for a submission in each state. Every step may be repeated: it looks first, then does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from bhive_mltf.errors import ProfileError, QueryFailedError, SlurmError, SubmissionError
from bhive_mltf.gateway import faults
from bhive_mltf.gateway.environments.store import LOCK_NAME
from bhive_mltf.gateway.errors import ArchiveError, EnvironmentBuildError, UpstreamError
from bhive_mltf.gateway.identity.mint import Minter
from bhive_mltf.gateway.settings import Settings
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.database import Database
from bhive_mltf.gateway.store.tables import Owner, State, Submission
from bhive_mltf.gateway.tracking import Status, Tracking
from bhive_mltf.gateway.worker import attempts, batch, job_folder
from bhive_mltf.gateway.worker.endings import Ending, ending_of
from bhive_mltf.gateway.worker.leader import Office
from bhive_mltf.gateway.worker.preparing import Environments
from bhive_mltf.slurm import dispatch
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.outcome import ConfirmedEnd
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState

logger = logging.getLogger(__name__)
ACTOR: Final = "worker"
# A submission whose tracking run was not made after so long is refused.
CREATED_WITHIN_S: Final = 120.0
_RUN_STATUS: Final[dict[State, Status]] = {
    State.SUCCEEDED: "FINISHED",
    State.CANCELLED: "KILLED",
    State.FAILED: "FAILED",
    State.REFUSED: "FAILED",
}


@dataclass
class Steps:
    """One term's work. Errors that pass leave a submission where it is: the next tick does the step again."""

    settings: Settings
    database: Database
    office: Office
    minter: Minter
    clients: dict[str, Slurm] = field(default_factory=dict)
    ends: dict[str, ConfirmedEnd] = field(default_factory=dict)
    environments: Environments = field(init=False)

    def __post_init__(self) -> None:
        self.environments = Environments(self.settings)

    def do(self, submission: Submission) -> None:
        """One step of one submission."""
        steps: dict[str, Callable[[Submission], None]] = {
            State.CREATING.value: self._creating,
            State.ACCEPTED.value: self._accepted,
            State.PREPARING.value: self._preparing,
            State.SUBMITTING.value: self._submitting,
            State.QUEUED.value: self._following,
            State.RUNNING.value: self._following,
            State.CLOSING.value: self._closing,
        }
        steps[submission.state](submission)

    def _creating(self, submission: Submission) -> None:
        if time.time() - submission.created_at < CREATED_WITHIN_S:
            return
        self._close(submission, Ending(State.REFUSED, "tracking", "the tracking server did not take the run in time"))

    def _accepted(self, submission: Submission) -> None:
        if self._is_cancelled_early(submission):
            return
        try:
            job_folder.unpack(self.settings, submission)
        except ArchiveError as error:
            self._close(submission, Ending(State.REFUSED, "refused", str(error)))
            return
        faults.point("after_unpack")
        self._move(submission, State.PREPARING)

    def _preparing(self, submission: Submission) -> None:
        if self._is_cancelled_early(submission):
            self.environments.cancel(submission)
            return
        try:
            key = self.environments.prepare(submission)
            if key:
                with self.database.reading() as session:
                    in_use = {one.env_key for one in queries.alive(session) if one.id != submission.id}
                self.environments.make_room(key, in_use)
        except (EnvironmentBuildError, ProfileError) as error:
            self._close(submission, Ending(State.FAILED, "environment", str(error)))
            return
        if key is not None:
            self._move(submission, State.SUBMITTING, f"environment {key}" if key else "", env_key=key)
            self._log_environment(submission)

    def _log_environment(self, submission: Submission) -> None:
        """Leave the lock of a built environment with the run; without an answer it is done at the end of the job."""
        is_left = self.settings.job_folder(submission.id) / job_folder.PRIVATE / "lock_is_left"
        if not submission.env_key or is_left.exists():
            return
        try:
            lock = (self.environments.store.path(submission.env_key) / LOCK_NAME).read_text(encoding="utf-8")
            with self._tracking(submission) as tracking:
                tracking.set_tags(submission.run_id, {"mltf.env_key": submission.env_key})
                tracking.log_text(submission.run_id, f"environment/{LOCK_NAME}", lock)
            is_left.touch()
        except (UpstreamError, OSError) as error:
            logger.warning("%s: %s", submission.id, error)

    def _submitting(self, submission: Submission) -> None:
        folder = self.settings.job_folder(submission.id)
        record = JobRecord.read(folder)
        if submission.cancel_at is not None and (record is None or batch.is_lost(record)):
            self._close(submission, Ending(State.CANCELLED, "cancelled", "cancelled before it was handed in"))
            return
        profile = self.settings.profiles[submission.profile]
        self._renew_token(submission)
        try:
            facility = job_folder.facility_of(profile, submission)
            spec = job_folder.spec_of(self.settings, submission, profile, facility)
            record = batch.submit_once(facility, spec, self._client(submission))
        except (SubmissionError, ProfileError) as error:
            self._close(submission, Ending(State.REFUSED, "refused", str(error)))
            return
        except QueryFailedError as error:
            logger.warning("%s: %s", submission.id, error)
            return
        if record.job_id is None:
            return
        faults.point("after_record")
        values = {"job_id": record.job_id, "job_state": record.state.value, "submitted_at": record.submitted}
        self._move(submission, State.QUEUED, f"job {record.job_id}", **values)

    def _following(self, submission: Submission) -> None:
        client = self._client(submission)
        record = JobRecord.read(self.settings.job_folder(submission.id))
        if record is None:
            self._close(submission, Ending(State.FAILED, "gone", "the record of the job is gone from the spool"))
            return
        self._renew_token(submission)
        if submission.cancel_at is not None and not record.is_over:
            client.cancel(submission.job_id)
            faults.point("after_scancel")
        record, info = dispatch.refresh(record, client)
        if info.state is JobState.TIMEOUT and submission.cancel_at is None:
            record, info = attempts.after_time_limit(self.settings, submission, record, info, client)
        record, done = dispatch.release_once(record, info, client)
        if done:
            self._move(submission, State(submission.state), done)
        self._note_attempt(submission, record)
        end = self.ends.setdefault(submission.id, ConfirmedEnd())
        if record.is_over or end.is_over(record, info, time.monotonic()):
            record = record if record.is_over else dispatch.end(record, info)
            self.ends.pop(submission.id, None)
            if batch.is_lost(record) and submission.cancel_at is None:
                self._move(submission, State.SUBMITTING, f"the scheduler has lost job {record.job_id} before it began")
                return
            faults.point("after_end")
            values = {"job_state": record.state.value, "exit_code": record.exit_code, "ended_at": record.ended}
            self._close(
                submission,
                ending_of(record, is_wanted=submission.cancel_at is not None, resume=submission.resume),
                **values,
            )
            return
        if not info.state.is_waiting and not info.state.is_final and submission.state == State.QUEUED.value:
            self._move(submission, State.RUNNING, started_at=time.time(), job_state=info.state.value)
        if submission.state == State.RUNNING.value and submission.run_status_sent != "RUNNING":
            self._send(submission, "RUNNING")

    def _note_attempt(self, submission: Submission, record: JobRecord) -> None:
        """A job that was put back into the queue stays the same submission and the same run."""
        if record.restarts > submission.restarts:
            detail = f"put back into the queue, attempt {record.restarts + 1}"
            self._move(submission, State(submission.state), detail, restarts=record.restarts)

    def _closing(self, submission: Submission) -> None:
        state = State(submission.outcome)
        status, ended = _RUN_STATUS[state], submission.ended_at or time.time()
        self.environments.note_end(submission)
        self._log_environment(submission)
        with self._tracking(submission) as tracking:
            run_id = submission.run_id or self._stray_run(submission, tracking)
            if run_id:
                tags = {"mltf.reason": submission.reason} if submission.reason else {}
                tracking.set_tags(run_id, {**tags, "mltf.slurm_job": submission.job_id, "mltf.state": state.value})
                tracking.set_status(run_id, status, ended)
        faults.point("after_status")
        job_folder.remove_secrets(self.settings, submission)
        self._move(submission, state, submission.reason, run_status_sent=status, ended_at=ended)

    def _stray_run(self, submission: Submission, tracking: Tracking) -> str:
        """The run of a submission whose request was interrupted before it was written down."""
        experiment = tracking.find_experiment(submission.experiment)
        return tracking.find_run(experiment, submission.id) if experiment else ""

    def _is_cancelled_early(self, submission: Submission) -> bool:
        if submission.cancel_at is None:
            return False
        self._close(submission, Ending(State.CANCELLED, "cancelled", "cancelled before it was handed in"))
        return True

    def _client(self, submission: Submission) -> Slurm:
        """One client per facility: it asks one question for all jobs of a tick."""
        profile = self.settings.profiles[submission.profile]
        if profile.facility not in self.clients:
            facility = job_folder.facility_of(profile, submission)
            found = batch.WatchedSlurm.of(facility)
            found.fresh_s = self.settings.tick_s / 2
            found.submit_timeout_s = self.settings.submit_timeout_s
            self.clients[profile.facility] = found
        return self.clients[profile.facility]

    def _renew_token(self, submission: Submission) -> None:
        if job_folder.token_age(self.settings, submission) < self.settings.token_s / 2:
            return
        owner = self._owner(submission)
        if owner.blocked_at is not None:
            return
        claims = {"run": submission.run_id, "experiment": submission.experiment_id}
        token = self.minter.mint(owner.mlflow_name, "job", self.settings.token_s, **claims)
        job_folder.write_token(self.settings, submission, token)

    def _send(self, submission: Submission, status: Status) -> None:
        """Tell the tracking server; without an answer the next tick does it."""
        try:
            with self._tracking(submission) as tracking:
                tracking.set_status(submission.run_id, status)
        except UpstreamError as error:
            logger.warning("%s: %s", submission.id, error)
            return
        self._move(submission, State(submission.state), f"run {status}", run_status_sent=status)

    def _tracking(self, submission: Submission) -> Tracking:
        name = self._owner(submission).mlflow_name
        return Tracking(self.settings.tracking_url, lambda: self.minter.mint(name, "gateway", 300.0))

    def _owner(self, submission: Submission) -> Owner:
        with self.database.reading() as session:
            found = session.get(Owner, submission.owner)
        if found is None:
            raise SlurmError(f"submission {submission.id} has no owner")
        return found

    def _close(self, submission: Submission, ending: Ending, **values: Any) -> None:  # noqa: ANN401 - columns
        reasons = {"outcome": ending.state.value, "reason_code": ending.code, "reason": ending.reason}
        self._move(submission, State.CLOSING, ending.reason, **reasons, **values)

    def _move(self, submission: Submission, after: State, detail: str = "", **values: Any) -> None:  # noqa: ANN401 - columns
        """Write a change; the cancel wish of the API is a column of its own and is left as it is."""
        with self.office.writing() as session:
            row = session.get(Submission, submission.id, with_for_update=True)
            if row is None or row.state != submission.state:
                return
            queries.move(session, row, after, ACTOR, detail, **values)
        for name in ("state", *values):
            setattr(submission, name, getattr(row, name))
        faults.point(f"at_{after.value}")
