"""What API and worker ask the database. Every question about a submission names its owner, or is the worker's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import select, tuple_, update
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.orm import Session

from bhive_mltf.gateway.identity.policy import mlflow_name
from bhive_mltf.gateway.identity.provider import Caller
from bhive_mltf.gateway.store.tables import FINAL, Base, Event, Leader, Owner, Project, ProjectRef, State, Submission

WORKER: Final = "worker"


class NotLeadingError(RuntimeError):
    """Another worker leads now: this one may write nothing."""


def owner_of(session: Session, caller: Caller) -> Owner:
    """The row of a person, made at the first sight; call it in a transaction that writes."""
    found = find_owner(session, caller)
    if found is None:
        name = mlflow_name(caller.issuer, caller.subject)
        display = caller.display.replace("\0", "")
        _add_unless_there(session, Owner(iss=caller.issuer, sub=caller.subject, display=display, mlflow_name=name))
        found = find_owner(session, caller)
    if found is None:
        raise NoResultFound(f"the row of {caller.subject} was removed as it was made")
    return found


def lock_owner(session: Session, owner: str) -> None:
    """Let the submissions of one owner come one after the other until this transaction ends."""
    session.execute(select(Owner.id).where(Owner.id == owner).with_for_update())


def find_owner(session: Session, caller: Caller) -> Owner | None:
    """The row of a person."""
    return session.scalar(select(Owner).where(Owner.iss == caller.issuer, Owner.sub == caller.subject))


def project_of(session: Session, owner: str, digest: str) -> Project | None:
    """A project that this owner has uploaded."""
    wanted = select(Project).join(ProjectRef).where(ProjectRef.owner == owner, ProjectRef.digest == digest)
    return session.scalar(wanted)


def remember_project(session: Session, owner: str, project: Project) -> Project:
    """The row of an uploaded project, made if it is new, and that this owner has it."""
    digest = project.digest
    if session.get(Project, digest) is None:
        _add_unless_there(session, project)
    if session.get(ProjectRef, (owner, digest)) is None:
        _add_unless_there(session, ProjectRef(owner=owner, digest=digest))
    return session.get_one(Project, digest)


def submission_of(session: Session, owner: str, submission: str, *, to_write: bool = False) -> Submission | None:
    """A submission, if it belongs to this owner; to write it, others wait until this transaction ends."""
    wanted = select(Submission).where(Submission.id == submission, Submission.owner == owner)
    return session.scalar(wanted.with_for_update() if to_write else wanted)


def submission_by_key(session: Session, owner: str, key: str) -> Submission | None:
    """The submission that this owner made with an idempotency key."""
    return session.scalar(select(Submission).where(Submission.owner == owner, Submission.idem_key == key))


def page(
    session: Session, owner: str, *, state: str = "", label: str = "", after: Submission | None = None, limit: int = 50
) -> Sequence[Submission]:
    """Submissions of an owner, of all for an operator (empty), newest first, after the given one."""
    wanted = select(Submission)
    if owner:
        wanted = wanted.where(Submission.owner == owner)
    if state:
        wanted = wanted.where(Submission.state == state)
    if label:
        wanted = wanted.where(Submission.label == label)
    if after is not None:
        wanted = wanted.where(tuple_(Submission.created_at, Submission.id) < (after.created_at, after.id))
    return session.scalars(wanted.order_by(Submission.created_at.desc(), Submission.id.desc()).limit(limit)).all()


def alive(session: Session, owner: str = "") -> Sequence[Submission]:
    """The submissions that are not over, oldest first; those of one owner if asked."""
    wanted = select(Submission).where(Submission.state.not_in([state.value for state in FINAL]))
    if owner:
        wanted = wanted.where(Submission.owner == owner)
    return session.scalars(wanted.order_by(Submission.created_at, Submission.id)).all()


def events(session: Session, submission: str) -> Sequence[Event]:
    """What happened to a submission, oldest first."""
    return session.scalars(select(Event).where(Event.submission == submission).order_by(Event.id)).all()


def move(session: Session, submission: Submission, after: State, actor: str, detail: str = "", **values: Any) -> None:  # noqa: ANN401 - columns of the table
    """Change a submission's state, with its event, in this transaction."""
    before, detail = submission.state, detail.replace("\0", "")
    for name, value in values.items():
        # PostgreSQL holds no NUL in a text
        setattr(submission, name, value.replace("\0", "") if isinstance(value, str) else value)
    submission.state = after.value
    submission.updated_at = time.time()
    session.add(submission)
    session.add(Event(submission=submission.id, before=before, after=after.value, actor=actor, detail=detail))


def take_office(session: Session, holder: str) -> int:
    """Begin a term as the worker that writes; its number."""
    if session.get(Leader, WORKER) is None:
        _add_unless_there(session, Leader(name=WORKER, epoch=0))
    leader = session.get_one(Leader, WORKER, with_for_update=True, populate_existing=True)
    leader.epoch += 1
    leader.holder, leader.heartbeat = holder, time.time()
    session.flush()
    return leader.epoch


def hold_office(session: Session, epoch: int) -> None:
    """First words of each transaction of a worker; NotLeadingError when another term has begun."""
    mine = update(Leader).where(Leader.name == WORKER, Leader.epoch == epoch).values(heartbeat=time.time())
    if session.execute(mine).rowcount != 1:  # type: ignore[attr-defined]
        raise NotLeadingError("another worker has begun to lead")


def _add_unless_there(session: Session, row: Base) -> None:
    """Add a row, unless another transaction has just added one with the same key."""
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        pass
