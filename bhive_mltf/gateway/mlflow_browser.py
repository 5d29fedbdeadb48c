"""The pages of MLflow in a browser: people sign in by the session that they have at the gateway's page.

Three steps, as in the code flow of OAuth 2.0 (RFC 6749, section 4.1). A page without a session leaves a random word in
a cookie and goes to the gateway with its hash; the gateway answers with a code of one minute that names this hash;
MLflow takes the code only together with the word, and begins a session. So a code that is seen in a log is worthless,
and no other site can sign a browser in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from flask import Response, current_app, request
from itsdangerous import BadData, URLSafeSerializer

from bhive_mltf.gateway import mlflow_tokens
from bhive_mltf.gateway.mlflow_tokens import BROWSER_KIND, CODE

_ATTEMPT_S: Final = 600
_NO_CODE: Final = """<!doctype html><html lang="en"><title>Not signed in</title>
<p>This sign-in was begun elsewhere, or too long ago, or the browser keeps no cookies: <a href="/">begin again</a>.
"""


def next_step() -> Response | None:
    """Where a browser has to go first; None when it has a session, or asks for something else than the page."""
    if request.method != "GET" or request.path != "/" or "text/html" not in request.headers.get("Accept", ""):
        return None
    code = request.args.get(CODE)
    if code:
        return _enter(code)
    # without a value: the gateway's page asks to begin anew, since another person may have signed in there
    return _leave() if code is not None or person() is None else None


def person() -> str | None:
    """The name in MLflow of who has a session."""
    content = _read(request.cookies.get(_name("session"), ""))
    return str(content["name"]) if content is not None and content["until"] > time.time() else None


def is_of_own_page() -> bool:
    """Whether a request that may change something comes from a page of this server; browsers say where from."""
    if request.method in ("GET", "HEAD"):
        return True
    return urlsplit(request.headers.get("Origin", "")).netloc == request.host


def _leave() -> Response:
    word = secrets.token_urlsafe(32)
    place = f"{mlflow_tokens.issuer()}/auth/mlflow?{urlencode({'state': _hash(word)})}"
    response = _to(place)
    _set_cookie(response, "attempt", word, _ATTEMPT_S)
    return response


def _enter(code: str) -> Response:
    claims = mlflow_tokens.claims(code, {BROWSER_KIND})
    wanted = _hash(request.cookies.get(_name("attempt"), ""))
    if claims is None or not hmac.compare_digest(str(claims.get("state", "")).encode(), wanted.encode()):
        return _to("/") if person() is not None else Response(_NO_CODE, 403, mimetype="text/html")
    until = int(claims["until"])
    response = _to("/")
    content = _serializer().dumps({"name": claims["sub"], "until": until})
    # the server hands on one cookie of an answer only: the word stays until it is too old
    _set_cookie(response, "session", str(content), max(0, until - int(time.time())))
    return response


def _to(place: str) -> Response:
    headers = {"Location": place, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return Response(status=303, headers=headers)


def _read(content: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = _serializer().loads(content)
    except BadData:
        return None
    return found


def _serializer() -> URLSafeSerializer:
    """Signs with the Flask key of the server, which its replicas share."""
    return URLSafeSerializer(str(current_app.secret_key), salt="mltf", signer_kwargs={"digest_method": hashlib.sha256})


def _set_cookie(response: Response, kind: str, value: str, age: int) -> None:
    response.set_cookie(_name(kind), value, age, secure=_is_secure(), httponly=True, samesite="Lax", path="/")


def _name(kind: str) -> str:
    """Browsers hold a name with `__Host-` to this very host, and to TLS."""
    return f"__Host-mltf-tracking-{kind}" if _is_secure() else f"mltf-tracking-{kind}"


def _is_secure() -> bool:
    return mlflow_tokens.issuer().startswith("https://")


def _hash(word: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(word.encode()).digest()).decode().rstrip("=")
