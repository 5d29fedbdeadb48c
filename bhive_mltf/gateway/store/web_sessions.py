"""Sessions of the page: the database knows a session by the hash of what the browser's cookie holds."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable

from sqlalchemy import delete
from sqlalchemy.orm import Session

from bhive_mltf.gateway.store.tables import WebSession


def begin(session: Session, owner: str, roles: Iterable[str], lifetime_s: float) -> str:
    """Begin a session and remove those that are over; the secret that its cookie holds."""
    now = time.time()
    session.execute(delete(WebSession).where(WebSession.expires_at < now))
    secret = secrets.token_urlsafe(32)
    session.add(WebSession(id_hash=_hash(secret), owner=owner, roles=sorted(roles), expires_at=now + lifetime_s))
    return secret


def find(session: Session, secret: str) -> WebSession | None:
    """The session of a cookie, if it is not over."""
    found = session.get(WebSession, _hash(secret))
    return found if found is not None and found.expires_at > time.time() else None


def end(session: Session, secret: str) -> None:
    """End a session; one that is not there is ended already."""
    session.execute(delete(WebSession).where(WebSession.id_hash == _hash(secret)))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
