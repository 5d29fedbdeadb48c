"""What the routes share: settings, database, keys, and who calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from bhive_mltf.gateway.api.problems import Problem
from bhive_mltf.gateway.errors import TokenError
from bhive_mltf.gateway.identity import policy
from bhive_mltf.gateway.identity.mint import Minter
from bhive_mltf.gateway.identity.policy import Rights
from bhive_mltf.gateway.identity.provider import Caller, TokenVerifier
from bhive_mltf.gateway.settings import Settings
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.database import Database
from bhive_mltf.gateway.store.tables import Owner
from bhive_mltf.gateway.tracking import Tracking

OWN_TOKEN_S = 300.0


@dataclass(frozen=True)
class Services:
    """One application's parts."""

    settings: Settings
    database: Database
    verifier: TokenVerifier
    minter: Minter

    def tracking(self, owner: Owner) -> Tracking:
        """The tracking server in the name of a person."""
        name = owner.mlflow_name
        return Tracking(self.settings.tracking_url, lambda: self.minter.mint(name, "gateway", OWN_TOKEN_S))


@dataclass(frozen=True)
class Person:
    """Who calls, checked: a token alone gives nothing, a role must map to something."""

    owner: Owner
    caller: Caller
    rights: Rights


def services(request: Request) -> Services:
    """The parts of the application that answers."""
    found: Services = request.app.state.services
    return found


Parts = Annotated[Services, Depends(services)]


def person(request: Request, parts: Parts) -> Person:
    """Who calls.

    Raises
    ------
    Problem : 400 for a token in the address, 401 without a valid one, 403 without a role or when blocked.
    """
    if "access_token" in request.query_params:
        raise Problem(400, "token-in-url", "a token belongs into the header Authorization, not into the address")
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise _unauthorized("send an access token: run 'bhive-mltf-client login'")
    try:
        caller = parts.verifier.verify(token.strip())
    except TokenError as error:
        raise _unauthorized(f"{error}: run 'bhive-mltf-client login'") from None
    allowed = policy.rights(parts.settings, caller.roles)
    if allowed is None:
        raise Problem(403, "no-role", "you have none of the roles that may use this gateway: ask its operator for one")
    with parts.database.reading() as session:
        owner = queries.find_owner(session, caller)
    if owner is None:
        with parts.database.writing() as session:
            owner = queries.owner_of(session, caller)
    if owner.blocked_at is not None:
        raise Problem(403, "blocked", "the operator of this gateway has blocked this account")
    return Person(owner, caller, allowed)


Me = Annotated[Person, Depends(person)]


def _unauthorized(detail: str) -> Problem:
    return Problem(401, "token", detail, headers={"WWW-Authenticate": "Bearer"})
