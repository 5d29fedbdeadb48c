"""What a person may do: deny, unless a role in the token allows it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from bhive_mltf.gateway.settings import Settings


@dataclass(frozen=True)
class Rights:
    """All that the roles of a token allow together; the largest limit counts."""

    profiles: frozenset[str]
    admin: bool
    gpu_hours: float
    jobs: int


def rights(settings: Settings, roles: Iterable[str]) -> Rights | None:
    """What these roles allow; None when none of them is known."""
    known = [settings.roles[name] for name in roles if name in settings.roles]
    if not known:
        return None
    return Rights(
        profiles=frozenset(name for role in known for name in role.profiles),
        admin=any(role.admin for role in known),
        gpu_hours=max(role.gpu_hours for role in known),
        jobs=max(role.jobs for role in known),
    )


def mlflow_name(issuer: str, subject: str) -> str:
    """The person's name in MLflow: it survives renames, and nobody else can get it."""
    digest = hashlib.sha256(f"{issuer}\0{subject}".encode()).digest()
    return "u-" + base64.b32encode(digest).decode("ascii").lower()[:12]
