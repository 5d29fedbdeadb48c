"""Tokens on this machine: one file that only its owner reads, `~/.config/bhive-mltf/tokens.json`.

Nothing is read from the current folder, so that a project cannot send tokens elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bhive_mltf_client.errors import ClientError, NotSignedInError


@dataclass(frozen=True)
class Tokens:
    """What a sign-in gave, for one gateway.

    expires_at : of the access token, seconds since 1970.
    """

    gateway: str
    issuer: str
    client_id: str
    access_token: str
    refresh_token: str
    expires_at: float
    tracking_url: str


def folder() -> Path:
    """Where the tokens lie."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "bhive-mltf"


def path() -> Path:
    """The file of the tokens."""
    return folder() / "tokens.json"


@contextmanager
def locked() -> Iterator[None]:
    """Let one process at a time renew: a refresh token that is used twice ends the whole sign-in."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read() -> Tokens:
    """The tokens of the present sign-in.

    Raises
    ------
    NotSignedInError : there are none.
    ClientError : others may read the file, or it is damaged.
    """
    place = path()
    try:
        if place.stat().st_mode & 0o077:
            raise ClientError(f"{place} can be read by others: run chmod 600 {place}, and sign in again")
        return Tokens(**json.loads(place.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise NotSignedInError("you are not signed in: run 'bhive-mltf-client login URL'") from None
    except (OSError, ValueError, TypeError):
        raise ClientError(f"{place} cannot be read: remove it, and sign in again") from None


def write(tokens: Tokens) -> None:
    """Keep the tokens, as a whole or not at all."""
    place = path()
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = place.with_suffix(f".{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(asdict(tokens), file, indent=2)
        file.flush()
        os.fsync(handle)
    temporary.replace(place)


def remove() -> bool:
    """Forget the tokens; False when there were none."""
    try:
        path().unlink()
    except FileNotFoundError:
        return False
    return True
