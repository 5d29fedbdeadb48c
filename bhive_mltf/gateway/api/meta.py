"""What a client needs to know before and after signing in."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from bhive_mltf.gateway.api.services import Me, Parts
from bhive_mltf.gateway.environments.wanted import PREPARED
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.tables import Leader

router = APIRouter()
# A worker that has not written for so long is away.
_AWAY_S = 60.0


@router.get("/v1/config")
def config(parts: Parts) -> dict[str, Any]:
    """Where to sign in, and where the tracking server is; open to all."""
    settings = parts.settings
    return {
        "issuer": settings.provider.issuer,
        "client_id": settings.provider.cli_client,
        "scopes": list(settings.provider.scopes),
        "audience": settings.provider.audiences[0],
        "tracking_url": settings.tracking_people_url,
        "limits": settings.limits.model_dump(),
    }


@router.get("/v1/me")
def me(person: Me, parts: Parts) -> dict[str, Any]:
    """Who the token speaks for, and what that person may use."""
    with parts.database.reading() as session:
        jobs = queries.alive(session, person.owner.id)
    return {
        "display": person.caller.display,
        "issuer": person.caller.issuer,
        "subject": person.caller.subject,
        "mlflow_name": person.owner.mlflow_name,
        "admin": person.rights.admin,
        "limits": {"jobs": person.rights.jobs, "gpu_hours": person.rights.gpu_hours},
        "used": {"jobs": len(jobs), "gpu_hours": sum(job.gpus * job.hours for job in jobs)},
    }


@router.get("/v1/profiles")
def profiles(person: Me, parts: Parts) -> list[dict[str, Any]]:
    """The kinds of jobs that the caller may ask for."""
    builds = parts.settings.builds
    return [
        {
            "name": name,
            "description": profile.description,
            "max_hours": profile.max_hours,
            "max_nodes": profile.max_nodes,
            "max_ranks_per_node": profile.max_ranks,
            "max_attempts": profile.max_attempts,
            "gpus_per_node": profile.gpus_per_node,
            "network": profile.network,
            "environments": [PREPARED, *(f"{PREPARED}:{one}" for one in profile.environments)],
            "builds": profile.builds,
            "pythons": list(builds.pythons) if profile.builds and builds is not None else [],
        }
        for name, profile in parts.settings.profiles.items()
        if name in person.rights.profiles
    ]


@router.post("/v1/tokens/tracking")
def tracking_token(person: Me, parts: Parts) -> dict[str, Any]:
    """A token for the tracking server; it lives no longer than the caller's own."""
    lifetime = min(parts.settings.token_s, max(person.caller.expires - time.time(), 1.0))
    token = parts.minter.mint(person.owner.mlflow_name, "user", lifetime)
    return {"token": token, "expires_in": int(lifetime)}


@router.get("/.well-known/jwks.json")
def jwks(parts: Parts) -> dict[str, Any]:
    """The public keys of the gateway's own tokens."""
    return parts.minter.jwks()


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(parts: Parts) -> dict[str, Any]:
    """Whether the database answers, and whether a worker writes to it."""
    with parts.database.reading() as session:
        leader = session.get(Leader, queries.WORKER)
    away = leader is None or time.time() - leader.heartbeat > _AWAY_S
    return {"status": "degraded" if away else "ok", "worker": "away" if away else "ok"}
