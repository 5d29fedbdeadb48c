"""Tokens of a tracking server: read from a file at each request, and kept out of everything that is recorded.

`MLFLOW_TRACKING_AUTH=bhive-token-file` makes MLflow ask `TokenFileProvider` (entry point of the group
`mlflow.request_auth_provider`) for each request, so that a token that another program renews in the file
`MLFLOW_TRACKING_TOKEN_FILE` holds in a training that runs longer than a token lives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bhive_mltf.errors import TrackingError

if TYPE_CHECKING:
    from requests import PreparedRequest

NAME = "bhive-token-file"
FILE_VARIABLE = "MLFLOW_TRACKING_TOKEN_FILE"
_SECRET_NAME = re.compile(r"TOKEN|PASSWORD|SECRET|CREDENTIAL|JWT|API_?KEY", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/\s@\"']+@")
_SHORTEST = 8  # characters; shorter values are words that stand elsewhere too
_HIDDEN = "***"
V = TypeVar("V")


def read_token(path: str | Path) -> str:
    """The token in a file that only its owner can read.

    Raises
    ------
    TrackingError : it is missing, empty, or open to others.
    """
    file = Path(path)
    try:
        mode = file.stat().st_mode
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise TrackingError(f"the token file {file} cannot be read ({reason}): sign on again") from error
    if mode & 0o077:
        raise TrackingError(f"the token file is open to others: chmod 600 {file}")
    if not token or not token.isascii() or any(character.isspace() for character in token):
        raise TrackingError(f"the token file {file} does not hold one token: sign on again")
    return token


class TokenFileAuth:
    """Signs a request with the token that is in the file now."""

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """The request with its `Authorization` header.

        Raises
        ------
        TrackingError : see `read_token`; or the variable that names the file is not set.
        """
        path = os.environ.get(FILE_VARIABLE, "").strip()
        if not path:
            raise TrackingError(f"MLFLOW_TRACKING_AUTH is {NAME}, but {FILE_VARIABLE} is not set: name the file")
        request.headers["Authorization"] = f"Bearer {read_token(path)}"
        return request


class TokenFileProvider:
    """What MLflow asks for; it needs these two methods only, so that nothing here imports mlflow."""

    def get_name(self) -> str:
        """The value of `MLFLOW_TRACKING_AUTH`."""
        return NAME

    def get_auth(self) -> TokenFileAuth:
        """What signs the requests of this process."""
        return TokenFileAuth()


def secrets(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Values that must not be recorded: tokens and passwords of the environment, and of the token file."""
    found = {value for name, value in environment.items() if _SECRET_NAME.search(name) and "FILE" not in name}
    path = environment.get(FILE_VARIABLE, "").strip()
    if path:
        with suppress(OSError, UnicodeDecodeError):
            found.add(Path(path).read_text(encoding="utf-8").strip())
    # paths are no secrets: a variable may name a file of tokens
    return tuple(sorted((v for v in found if len(v) >= _SHORTEST and not v.startswith("/")), key=len, reverse=True))


def without_secrets(value: V) -> V:
    """The same text, list or mapping with secrets, and credentials inside URLs, replaced by `***`."""
    hidden: V = _hide(value, secrets())
    return hidden


def _hide(value: Any, hidden: tuple[str, ...]) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        for secret in hidden:
            value = value.replace(secret, _HIDDEN)
        return _IN_URL.sub(f"{_HIDDEN}@", value)
    if isinstance(value, Mapping):
        return {key: _hide(one, hidden) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(one, hidden) for one in value]
    return value
