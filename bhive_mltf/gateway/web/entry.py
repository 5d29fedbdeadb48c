"""Signing in and out at the page."""

from __future__ import annotations

import hmac
import time
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from bhive_mltf.gateway.api.services import Parts, Services
from bhive_mltf.gateway.errors import TokenError, UpstreamError
from bhive_mltf.gateway.identity import policy
from bhive_mltf.gateway.mlflow_tokens import BROWSER_KIND, CODE
from bhive_mltf.gateway.store import queries, web_sessions
from bhive_mltf.gateway.web import sign_in, visitor
from bhive_mltf.gateway.web.sign_in import Attempt
from bhive_mltf.gateway.web.visitor import Form, Looking, PageError

router = APIRouter(include_in_schema=False, prefix="/auth")
_Text = Annotated[str, Query(max_length=4096)]
_CODE_S: Final = 60.0
_AGAIN: Final = "this sign-in was begun elsewhere, or too long ago: begin again"


@router.get("/login")
def login(parts: Parts) -> Response:
    """Send the browser to the sign-on provider."""
    _check_there_is_a_page(parts)
    return _to_the_provider(parts, Attempt.new())


@router.get("/callback")
def callback(request: Request, parts: Parts, code: _Text = "", state: _Text = "", error: _Text = "") -> Response:
    """Where the provider sends the browser back to: a session of a new name begins."""
    _check_there_is_a_page(parts)
    attempt = Attempt.read(request.cookies.get(visitor.cookie_name(parts, "attempt"), ""))
    if attempt is None or not hmac.compare_digest(attempt.state.encode(), state.encode()):
        raise PageError(400, _AGAIN)
    if error or not code:
        raise PageError(403, "the sign-on provider did not sign you in")
    try:
        caller = sign_in.finish(parts.settings.provider, parts.verifier, _redirect(parts), code, attempt)
    except TokenError as problem:
        raise PageError(403, str(problem)) from None
    except UpstreamError as problem:
        raise PageError(503, str(problem)) from None
    if policy.rights(parts.settings, caller.roles) is None:
        raise PageError(403, "you have none of the roles that may use this gateway: ask its operator for one")
    with parts.database.writing() as session:
        web_sessions.end(session, request.cookies.get(visitor.cookie_name(parts, "session"), ""))
        owner = queries.owner_of(session, caller)
        secret = web_sessions.begin(session, owner.id, caller.roles, visitor.SESSION_S)
    response = RedirectResponse(f"/auth/mlflow?state={attempt.tracking}" if attempt.tracking else "/jobs", 303)
    visitor.set_cookie(response, parts, "session", secret)
    visitor.drop_cookie(response, parts, "attempt")
    return response


@router.get("/mlflow")
def mlflow(request: Request, parts: Parts, state: _Text = "") -> Response:
    """Send the browser to the pages of MLflow, signed in there; see `bhive_mltf.gateway.mlflow_browser`."""
    _check_there_is_a_page(parts)
    place = f"{parts.settings.tracking_people_url}/"
    if not sign_in.is_state(state):
        raise PageError(400, _AGAIN)
    if not state:
        # MLflow begins: it leaves the word in the browser that the code is bound to
        return RedirectResponse(f"{place}?{CODE}=", 303)
    try:
        who = visitor.visitor(request, parts)
    except PageError as error:
        if error.status != 401:
            raise
        return _to_the_provider(parts, Attempt.new(state))
    until = int(time.time() + parts.settings.token_s)
    code = parts.minter.mint(who.owner.mlflow_name, BROWSER_KIND, _CODE_S, state=state, until=str(until))
    return RedirectResponse(f"{place}?{urlencode({CODE: code})}", 303)


@router.post("/logout")
def logout(who: Looking, parts: Parts, _: Form) -> Response:
    """End the session."""
    with parts.database.writing() as session:
        web_sessions.end(session, who.secret)
    response = RedirectResponse("/", 303)
    visitor.drop_cookie(response, parts, "session")
    return response


def _check_there_is_a_page(parts: Services) -> None:
    if not parts.settings.provider.web_client:
        raise PageError(404, "this gateway has no page to sign in at: use 'bhive-mltf-client'")


def _redirect(parts: Services) -> str:
    return f"{parts.settings.public_url}/auth/callback"


def _to_the_provider(parts: Services, attempt: Attempt) -> Response:
    try:
        place = sign_in.address(parts.settings.provider, parts.verifier.document(), _redirect(parts), attempt)
    except UpstreamError as error:
        raise PageError(503, str(error)) from None
    response = RedirectResponse(place, 303)
    visitor.set_cookie(response, parts, "attempt", str(attempt))
    return response
