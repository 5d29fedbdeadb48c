"""Tables: plain columns and JSON, times in seconds since 1970.

A submission's state after `creating` is written by the worker alone; the API records only that somebody wants it
cancelled. Each change appends an event in the same transaction.
"""

from __future__ import annotations

import base64
import secrets
import time
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class State(StrEnum):
    """States of a submission, in the order in which it passes through them."""

    CREATING = "creating"
    ACCEPTED = "accepted"
    PREPARING = "preparing"
    SUBMITTING = "submitting"
    QUEUED = "queued"
    RUNNING = "running"
    CLOSING = "closing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"

    @property
    def is_final(self) -> bool:
        """Nothing follows any more."""
        return self in FINAL


FINAL: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.REFUSED})


def new_id(letter: str = "j") -> str:
    """A name of 128 random bits that nobody guesses: a letter and 26 of base 32."""
    return letter + base64.b32encode(secrets.token_bytes(16)).decode("ascii").lower().rstrip("=")


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, str: String}  # noqa: RUF012 - SQLAlchemy's name


class Owner(Base):
    """A person or service: (`iss`, `sub`) decides, `display` is shown only."""

    __tablename__ = "owner"
    __table_args__ = (UniqueConstraint("iss", "sub"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("o"))
    iss: Mapped[str]
    sub: Mapped[str]
    display: Mapped[str]
    mlflow_name: Mapped[str] = mapped_column(unique=True)
    blocked_at: Mapped[float | None]
    created_at: Mapped[float] = mapped_column(default=time.time)


class Project(Base):
    """An uploaded project, by the SHA-256 of its archive.

    environment : what its `MLproject` asks for, such as `python_env: python_env.yaml`.
    """

    __tablename__ = "project"

    digest: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[int]
    name: Mapped[str]
    entry_points: Mapped[dict[str, Any]]
    environment: Mapped[str] = mapped_column(default="", server_default="")
    created_at: Mapped[float] = mapped_column(default=time.time)


class ProjectRef(Base):
    """Who has uploaded a project: knowing its hash gives nothing."""

    __tablename__ = "project_ref"

    owner: Mapped[str] = mapped_column(ForeignKey("owner.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("project.digest"), primary_key=True)
    created_at: Mapped[float] = mapped_column(default=time.time)


class Submission(Base):
    """A training that somebody handed in.

    request_hash : of the request, so that an idempotency key with another request is noticed.
    argv : what runs, one string per argument.
    environment : a file of the project that it is built from, or `profile` or `profile:NAME`; empty: `profile`.
    env_key : of the environment that was built for it.
    ranks_per_node : how often the command is started on each node.
    resume : the command goes on from its checkpoints when it is started again.
    cancel_at, cancel_by : the wish to cancel it.
    run_status_sent : the last status that the tracking server has taken.
    """

    __tablename__ = "submission"
    __table_args__ = (
        UniqueConstraint("owner", "idem_key"),
        Index("submission_by_owner", "owner", "created_at", "id"),
        Index("submission_by_state", "state"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(ForeignKey("owner.id"))
    idem_key: Mapped[str]
    request_hash: Mapped[str]
    state: Mapped[str] = mapped_column(default=State.CREATING.value)
    reason_code: Mapped[str] = mapped_column(default="")
    reason: Mapped[str] = mapped_column(default="")
    cancel_at: Mapped[float | None]
    cancel_by: Mapped[str] = mapped_column(default="")
    digest: Mapped[str] = mapped_column(ForeignKey("project.digest"))
    name: Mapped[str] = mapped_column(default="")
    label: Mapped[str] = mapped_column(default="")
    entry_point: Mapped[str]
    params: Mapped[dict[str, Any]]
    argv: Mapped[list[str]]
    profile: Mapped[str]
    environment: Mapped[str] = mapped_column(default="", server_default="")
    env_key: Mapped[str] = mapped_column(default="", server_default="")
    nodes: Mapped[int] = mapped_column(default=1)
    ranks_per_node: Mapped[int] = mapped_column(default=1, server_default="1")
    resume: Mapped[bool] = mapped_column(default=False, server_default=false())
    gpus: Mapped[int] = mapped_column(default=0)
    hours: Mapped[float]
    experiment: Mapped[str] = mapped_column(default="")
    experiment_id: Mapped[str] = mapped_column(default="")
    run_id: Mapped[str] = mapped_column(default="")
    run_status_sent: Mapped[str] = mapped_column(default="")
    job_id: Mapped[str] = mapped_column(default="")
    job_state: Mapped[str] = mapped_column(default="")
    restarts: Mapped[int] = mapped_column(default=0)
    exit_code: Mapped[int | None]
    outcome: Mapped[str] = mapped_column(default="")
    created_at: Mapped[float] = mapped_column(default=time.time)
    submitted_at: Mapped[float | None]
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    updated_at: Mapped[float] = mapped_column(default=time.time)

    @property
    def is_over(self) -> bool:
        """Whether its state is final."""
        return State(self.state).is_final


class Event(Base):
    """One change of a submission, never changed itself."""

    __tablename__ = "event"
    __table_args__ = (Index("event_by_submission", "submission", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    submission: Mapped[str] = mapped_column(ForeignKey("submission.id"))
    before: Mapped[str]
    after: Mapped[str]
    actor: Mapped[str]
    detail: Mapped[str] = mapped_column(default="")
    time: Mapped[float] = mapped_column(default=time.time)


class WebSession(Base):
    """A session of the page: `id_hash` of the secret in its cookie, and the roles that the sign-in gave."""

    __tablename__ = "web_session"

    id_hash: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(ForeignKey("owner.id"))
    roles: Mapped[list[str]]
    expires_at: Mapped[float]


class Leader(Base):
    """The worker that may write; each term of office has a number."""

    __tablename__ = "leader"

    name: Mapped[str] = mapped_column(primary_key=True)
    epoch: Mapped[int] = mapped_column(default=0)
    holder: Mapped[str] = mapped_column(default="")
    heartbeat: Mapped[float] = mapped_column(default=0.0)
