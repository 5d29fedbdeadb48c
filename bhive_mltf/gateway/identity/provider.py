"""Access tokens of the sign-on provider, checked against its published keys (RFC 9068, OpenID Connect Discovery)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import httpx
import jwt

from bhive_mltf.gateway.errors import TokenError, UpstreamError
from bhive_mltf.gateway.settings import Provider

LEEWAY_S: Final = 30
FRESH_S: Final = 3600.0
# with the provider away, what was known before is used for so long
STALE_S: Final = 24 * 3600.0
# a token with an unknown key makes the keys be asked for again, but not by every request
REFETCH_S: Final = 30.0
TIMEOUT_S: Final = 10.0
_TYPES: Final = frozenset({"at+jwt", "application/at+jwt", "jwt"})
_REQUIRED: Final = ("iss", "aud", "sub", "exp", "iat")


@dataclass(frozen=True)
class Caller:
    """Who a token speaks for: (`issuer`, `subject`) decides, `display` is shown only."""

    issuer: str
    subject: str
    client: str
    display: str
    roles: frozenset[str]
    expires: float


@dataclass
class _Known:
    document: dict[str, Any]
    keys: dict[str, jwt.PyJWK]
    fetched: float


class TokenVerifier:
    """Checks access tokens of one provider.

    fetch : answers the JSON document of an address; UpstreamError without one.
    """

    def __init__(
        self,
        provider: Provider,
        fetch: Callable[[str], dict[str, Any]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._provider, self._fetch, self._clock = provider, fetch or fetch_json, clock
        self._known: _Known | None = None
        self._tried = float("-inf")
        self._lock = threading.Lock()

    def document(self) -> dict[str, Any]:
        """The discovery document; UpstreamError when it was never reached, or not for a day."""
        return self._knowledge().document

    def verify(self, token: str) -> Caller:
        """Who the token speaks for.

        Raises
        ------
        TokenError : the token is none, not signed by the provider, not for this gateway, or over.
        UpstreamError : the provider's keys are not known.
        """
        key = self._signed_with(token, _TYPES, "the token is not an access token")
        return self._caller(self._claims(token, key, list(self._provider.audiences)))

    def verify_id(self, token: str, client: str, nonce: str) -> str:
        """The subject of an ID token that was made for one sign-in of one client.

        Raises
        ------
        TokenError : as for `verify`, or the token is of another sign-in.
        UpstreamError : the provider's keys are not known.
        """
        claims = self._claims(token, self._signed_with(token, {"jwt"}, "the token is not an ID token"), [client])
        if not nonce or claims.get("nonce") != nonce or claims.get("azp", client) != client:
            raise TokenError("the token is of another sign-in")
        return str(claims["sub"])

    def _signed_with(self, token: str, types: Collection[str], wrong_type: str) -> jwt.PyJWK:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise TokenError("the token is not a signed JSON Web Token") from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in self._provider.algorithms:
            raise TokenError("the token is signed with an algorithm that is not accepted")
        if str(header.get("typ", "JWT")).lower() not in types:
            raise TokenError(wrong_type)
        key = self._key(key_id)
        if key is None:
            raise TokenError("the token is signed with a key that the sign-on provider does not publish")
        if key.algorithm_name != algorithm:
            raise TokenError("the token is signed with an algorithm that does not belong to its key")
        return key

    def _claims(self, token: str, key: jwt.PyJWK, audiences: list[str]) -> dict[str, Any]:
        provider = self._provider
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key=key,
                algorithms=list(provider.algorithms),
                audience=audiences,
                issuer=provider.issuer,
                leeway=LEEWAY_S,
                options={"require": list(_REQUIRED)},
            )
        except jwt.ExpiredSignatureError:
            raise TokenError("the token has expired") from None
        except jwt.InvalidAudienceError:
            raise TokenError("the token is for another service") from None
        except jwt.InvalidIssuerError:
            raise TokenError("the token is from another sign-on provider") from None
        except jwt.PyJWTError as error:
            raise TokenError(f"the token is not valid ({type(error).__name__})") from None
        return claims

    def _caller(self, claims: dict[str, Any]) -> Caller:
        if "nonce" in claims or "at_hash" in claims or str(claims.get("typ", "")).lower() in ("id", "refresh"):
            raise TokenError("the token is not an access token")
        client = claims.get("azp") or claims.get("client_id")
        if client not in self._provider.accepted_clients:
            raise TokenError("the token was given to a client that this gateway does not know")
        subject = claims["sub"]
        if not isinstance(subject, str) or not subject:
            raise TokenError("the token names nobody")
        return Caller(
            issuer=self._provider.issuer,
            subject=subject,
            client=str(client),
            display=str(claims.get("preferred_username") or claims.get("name") or subject)[:200],
            roles=_roles(claims, self._provider.roles_claim),
            expires=float(claims["exp"]),
        )

    def _key(self, key_id: object) -> jwt.PyJWK | None:
        if not isinstance(key_id, str):
            return None
        found = self._knowledge().keys.get(key_id)
        return found or self._knowledge(unknown_key=True).keys.get(key_id)

    def _knowledge(self, *, unknown_key: bool = False) -> _Known:
        with self._lock:
            now = self._clock()
            fresh = self._known is not None and now - self._known.fetched < FRESH_S and not unknown_key
            if not fresh and now - self._tried >= REFETCH_S:
                self._tried = now
                try:
                    self._known = self._ask(now)
                except UpstreamError:
                    if self._known is None or now - self._known.fetched > STALE_S:
                        self._tried = float("-inf")
                        raise
            if self._known is None or now - self._known.fetched > STALE_S:
                raise UpstreamError("the sign-on provider does not answer")
            return self._known

    def _ask(self, now: float) -> _Known:
        issuer = self._provider.issuer
        document = self._fetch(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if document.get("issuer") != issuer:
            raise UpstreamError(f"the discovery document of {issuer} names another issuer")
        keys = {}
        for one in self._fetch(str(document.get("jwks_uri"))).get("keys", ()):
            try:
                key = jwt.PyJWK(one)
            except jwt.PyJWTError:
                continue
            if key.key_id and one.get("use", "sig") == "sig":
                keys[key.key_id] = key
        return _Known(document, keys, now)


def fetch_json(url: str) -> dict[str, Any]:
    """The JSON object at an address; UpstreamError without one."""
    try:
        answer = httpx.get(url, timeout=TIMEOUT_S, follow_redirects=False)
        answer.raise_for_status()
        content = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UpstreamError(f"{url} gave no document ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise UpstreamError(f"{url} gave no JSON object")
    return content


def _roles(claims: dict[str, Any], path: str) -> frozenset[str]:
    value: object = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return frozenset(one for one in value if isinstance(one, str)) if isinstance(value, list) else frozenset()
