"""Signing in with a code that is typed into a browser on any device (RFC 8628), renewing, signing out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

from bhive_mltf_client import credentials
from bhive_mltf_client.credentials import Tokens
from bhive_mltf_client.errors import ClientError, NotSignedInError

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
TIMEOUT_S = 30.0
# A token is renewed when this part of its life is over.
RENEW_AFTER = 0.8
_LEAST_S = 30.0


def sign_in(gateway: str, tell: Callable[[str, str], None], sleep: Callable[[float], None] = time.sleep) -> Tokens:
    """Sign in at the provider of a gateway, and keep the tokens.

    Parameters
    ----------
    tell : called with the address to open and the code to type there.

    Raises
    ------
    ClientError : the gateway or the provider does not answer as it should, or the person does not sign in in time.
    """
    gateway = _address(gateway)
    config = _document(f"{gateway}/v1/config")
    try:
        issuer, client_id = config["issuer"], config["client_id"]
        scopes, tracking_url = " ".join(config["scopes"]), config["tracking_url"]
    except (KeyError, TypeError):
        raise ClientError(f"{gateway} is no MLTF gateway: look at the address") from None
    provider = _discover(issuer)
    if "device_authorization_endpoint" not in provider:
        raise ClientError(f"{issuer} has no sign-in by device code: ask the operator of {gateway}")
    asked = _form(provider["device_authorization_endpoint"], {"client_id": client_id, "scope": scopes})
    if "device_code" not in asked:
        raise ClientError(f"{issuer} gives no device code ({asked.get('error', 'no reason')})")
    tell(str(asked.get("verification_uri_complete") or asked["verification_uri"]), str(asked["user_code"]))
    answer = _wait(provider["token_endpoint"], client_id, asked, sleep)
    tokens = _tokens(answer, gateway, issuer, client_id, tracking_url)
    with credentials.locked():
        credentials.write(tokens)
    return tokens


def fresh() -> Tokens:
    """The tokens, renewed when most of their life is over; one process at a time renews.

    Raises
    ------
    NotSignedInError : there are none, or the provider does not take them any more.
    ClientError : the provider does not answer.
    """
    tokens = credentials.read()
    if not _is_old(tokens):
        return tokens
    with credentials.locked():
        tokens = credentials.read()
        # another process may have renewed them meanwhile
        if not _is_old(tokens):
            return tokens
        if not tokens.refresh_token:
            raise NotSignedInError(f"the sign-in is over: run 'bhive-mltf-client login {tokens.gateway}'")
        form = {
            "grant_type": "refresh_token",
            "refresh_token": tokens.refresh_token,
            "client_id": tokens.client_id,
        }
        answer = _form(_discover(tokens.issuer)["token_endpoint"], form)
        if "access_token" not in answer:
            raise NotSignedInError(
                f"the sign-in is over ({answer.get('error', 'no reason')}):"
                f" run 'bhive-mltf-client login {tokens.gateway}'"
            )
        answer.setdefault("refresh_token", tokens.refresh_token)
        renewed = _tokens(answer, tokens.gateway, tokens.issuer, tokens.client_id, tokens.tracking_url)
        # kept before its first use: the old refresh token is worth nothing now
        credentials.write(renewed)
        return renewed


def sign_out() -> bool:
    """Forget the tokens, also at the provider where that answers; False when there were none."""
    try:
        tokens = credentials.read()
    except ClientError:
        return credentials.remove()
    try:
        place = _discover(tokens.issuer).get("revocation_endpoint")
        if place and tokens.refresh_token:
            httpx.post(place, data={"token": tokens.refresh_token, "client_id": tokens.client_id}, timeout=TIMEOUT_S)
    except (ClientError, httpx.HTTPError):
        # what is forgotten here ends by itself there
        pass
    return credentials.remove()


def _wait(endpoint: str, client_id: str, asked: dict[str, Any], sleep: Callable[[float], None]) -> dict[str, Any]:
    interval = float(asked.get("interval", 5))
    deadline = time.monotonic() + float(asked.get("expires_in", 600))
    form = {"grant_type": DEVICE_GRANT, "device_code": asked["device_code"], "client_id": client_id}
    while time.monotonic() < deadline:
        sleep(interval)
        answer = _form(endpoint, form)
        if "access_token" in answer:
            return answer
        error = answer.get("error")
        if error == "slow_down":
            interval += 5
        elif error != "authorization_pending":
            raise ClientError(f"the sign-in did not work ({error}): try again")
    raise ClientError("the code was not typed in time: try again")


def _tokens(answer: dict[str, Any], gateway: str, issuer: str, client_id: str, tracking_url: str) -> Tokens:
    return Tokens(
        gateway=gateway,
        issuer=issuer,
        client_id=client_id,
        access_token=str(answer["access_token"]),
        refresh_token=str(answer.get("refresh_token", "")),
        expires_at=time.time() + float(answer.get("expires_in", 300)),
        tracking_url=tracking_url,
    )


def _is_old(tokens: Tokens) -> bool:
    left = tokens.expires_at - time.time()
    try:
        life = tokens.expires_at - credentials.path().stat().st_mtime
    except OSError:
        return True
    return left < max(life * (1 - RENEW_AFTER), min(_LEAST_S, life / 2))


def _discover(issuer: str) -> dict[str, Any]:
    document = _document(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if document.get("issuer") != issuer:
        raise ClientError(f"the sign-on service {issuer} calls itself {document.get('issuer')}: tell the operator")
    return document


def _document(url: str) -> dict[str, Any]:
    try:
        answer = httpx.get(url, timeout=TIMEOUT_S)
        answer.raise_for_status()
        content = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ClientError(f"{url} gives no answer ({type(error).__name__}): look at the address") from None
    return content if isinstance(content, dict) else {}


def _form(url: str, form: dict[str, str]) -> dict[str, Any]:
    try:
        content = httpx.post(url, data=form, timeout=TIMEOUT_S).json()
    except (httpx.HTTPError, ValueError) as error:
        raise ClientError(f"the sign-on service gives no answer ({type(error).__name__}): try again") from None
    return content if isinstance(content, dict) else {}


def _address(gateway: str) -> str:
    parts = urlsplit(gateway if "://" in gateway else f"https://{gateway}")
    is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_local):
        raise ClientError(f"{gateway} must begin with https://")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
