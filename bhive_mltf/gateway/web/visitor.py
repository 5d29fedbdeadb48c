"""Who looks at the page: session cookie, role, and the mark of its forms."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import Depends, Request, Response

from bhive_mltf.gateway.api.services import Parts, Services
from bhive_mltf.gateway.identity import policy
from bhive_mltf.gateway.identity.policy import Rights
from bhive_mltf.gateway.store import web_sessions
from bhive_mltf.gateway.store.tables import Owner

SESSION_S: Final = 8 * 3600.0
_ATTEMPT_S: Final = 600
_LARGEST_FORM: Final = 16_384


class PageError(Exception):
    """An answer that is a page with one sentence; 401 leads to the sign-in."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True)
class Visitor:
    """Somebody with a session; roles are held against the settings at each request."""

    owner: Owner
    rights: Rights
    secret: str

    @property
    def mark(self) -> str:
        """What a form has to bring along: other sites cannot know it, since they do not see the cookie."""
        return hashlib.sha256(f"form {self.secret}".encode()).hexdigest()


def visitor(request: Request, parts: Parts) -> Visitor:
    """Who looks.

    Raises
    ------
    PageError : 401 without a session, 403 when the person has no role any more, or is blocked.
    """
    secret = request.cookies.get(cookie_name(parts, "session"), "")
    with parts.database.reading() as session:
        found = web_sessions.find(session, secret) if secret else None
        owner = session.get(Owner, found.owner) if found is not None else None
    if found is None or owner is None:
        raise PageError(401, "sign in first")
    allowed = policy.rights(parts.settings, found.roles)
    if allowed is None:
        raise PageError(403, "you have none of the roles that may use this gateway: ask its operator for one")
    if owner.blocked_at is not None:
        raise PageError(403, "the operator of this gateway has blocked this account")
    return Visitor(owner, allowed, secret)


Looking = Annotated[Visitor, Depends(visitor)]


async def form(request: Request, who: Looking) -> dict[str, str]:
    """The fields of a form of one of our pages; PageError 403 for one of another site's."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_FORM:
            raise PageError(413, "the form is too large")
    fields = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
    if not hmac.compare_digest(fields.get("mark", "").encode(), who.mark.encode()):
        raise PageError(403, "the form is not of this session: open the page again")
    return fields


Form = Annotated[dict[str, str], Depends(form)]


def cookie_name(parts: Services, kind: str) -> str:
    """Browsers hold a name with `__Host-` to this very host, and to TLS."""
    return f"__Host-mltf-{kind}" if _is_secure(parts) else f"mltf-{kind}"


def set_cookie(response: Response, parts: Services, kind: str, value: str) -> None:
    """Set one of our cookies: `session`, or `attempt` to sign in."""
    age = int(SESSION_S) if kind == "session" else _ATTEMPT_S
    response.set_cookie(
        cookie_name(parts, kind), value, age, secure=_is_secure(parts), httponly=True, samesite="lax", path="/"
    )


def drop_cookie(response: Response, parts: Services, kind: str) -> None:
    """Remove one of our cookies."""
    response.delete_cookie(cookie_name(parts, kind), secure=_is_secure(parts), httponly=True, samesite="lax", path="/")


def _is_secure(parts: Services) -> bool:
    return parts.settings.public_url.startswith("https://")
