"""Signing in at the provider: code flow with PKCE (RFC 7636), state, and nonce (OpenID Connect Core, section 3.1)."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any
from urllib.parse import urlencode

import httpx

from bhive_mltf.errors import ConfigError
from bhive_mltf.gateway.errors import TokenError, UpstreamError
from bhive_mltf.gateway.identity.provider import TIMEOUT_S, Caller, TokenVerifier
from bhive_mltf.gateway.settings import Provider


@dataclass(frozen=True)
class Attempt:
    """One try to sign in: what the browser keeps until the provider sends it back.

    tracking : the state of the MLflow page that it began at; empty when it began at the gateway's own.
    """

    state: str
    nonce: str
    verifier: str
    tracking: str = ""

    @classmethod
    def new(cls, tracking: str = "") -> Attempt:
        """A new one of random values."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        return cls(state, nonce, verifier, tracking)

    @classmethod
    def read(cls, text: str) -> Attempt | None:
        """What `str` wrote; None when it is none."""
        parts = text.split(".")
        if len(parts) != 4 or any(len(part) != 43 for part in parts[:3]) or not is_state(parts[3]):
            return None
        return cls(*parts)

    def __str__(self) -> str:
        return ".".join(astuple(self))


def is_state(text: str) -> bool:
    """Whether this is the state of an MLflow page, or empty."""
    return re.fullmatch(r"(?:[\w-]{43})?", text, re.ASCII) is not None


def address(provider: Provider, document: Mapping[str, Any], redirect: str, attempt: Attempt) -> str:
    """Where the browser goes to sign in; UpstreamError when the provider names no such place."""
    challenge = base64.urlsafe_b64encode(hashlib.sha256(attempt.verifier.encode()).digest()).decode().rstrip("=")
    asked = {
        "response_type": "code",
        "client_id": provider.web_client,
        "redirect_uri": redirect,
        "scope": "openid",
        "state": attempt.state,
        "nonce": attempt.nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    return f"{_endpoint(document, 'authorization_endpoint')}?{urlencode(asked)}"


def finish(provider: Provider, verifier: TokenVerifier, redirect: str, code: str, attempt: Attempt) -> Caller:
    """Who has signed in: the code is exchanged, both tokens are checked, and neither is kept.

    Raises
    ------
    TokenError : the provider refuses the code, or a token is not of this attempt.
    UpstreamError : the provider does not answer.
    """
    asked = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect,
        "client_id": provider.web_client,
        "code_verifier": attempt.verifier,
    }
    if provider.web_secret_file is not None:
        asked["client_secret"] = _secret(provider)
    answer = post_form(_endpoint(verifier.document(), "token_endpoint"), asked)
    caller = verifier.verify(str(answer.get("access_token", "")))
    subject = verifier.verify_id(str(answer.get("id_token", "")), provider.web_client, attempt.nonce)
    if subject != caller.subject or caller.client != provider.web_client:
        raise TokenError("the two tokens of the sign-on provider name different people or clients")
    return caller


def post_form(url: str, asked: Mapping[str, str]) -> dict[str, Any]:
    """The JSON object that answers a form; TokenError when it is refused, UpstreamError without an answer."""
    try:
        answer = httpx.post(url, data=dict(asked), timeout=TIMEOUT_S, follow_redirects=False)
        content = answer.json() if answer.status_code < 500 else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UpstreamError(f"the sign-on provider does not answer ({type(error).__name__})") from None
    if answer.status_code != 200 and isinstance(content, dict):
        raise TokenError(f"the sign-on provider refuses the sign-in ({str(content.get('error', 'no reason'))[:60]})")
    if answer.status_code != 200 or not isinstance(content, dict):
        raise UpstreamError("the sign-on provider does not answer as it should")
    return content


def _endpoint(document: Mapping[str, Any], name: str) -> str:
    found = document.get(name)
    if not isinstance(found, str):
        raise UpstreamError(f"the discovery document of the sign-on provider names no {name}")
    return found


def _secret(provider: Provider) -> str:
    path = provider.web_secret_file
    try:
        return path.read_text(encoding="utf-8").strip() if path is not None else ""
    except OSError as error:
        raise ConfigError(f"`web_secret_file` {path} cannot be read ({error.strerror})") from None
