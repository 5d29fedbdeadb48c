"""Checks the gateway's tokens on the side of the MLflow server, which holds public keys only.

Neither Flask nor FastAPI here: what both sides call the code of a browser's sign-in stands here too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Set
from pathlib import Path
from typing import Any, Final

import jwt

ISSUER_VARIABLE: Final = "MLTF_ISSUER"
JWKS_VARIABLE: Final = "MLTF_JWKS_FILE"
CODE: Final = "mltf_code"
"""Parameter of the address at which the gateway sends a browser back."""
BROWSER_KIND: Final = "browser"
"""Kind of the token that this code is."""
_ALGORITHM: Final = "ES256"
_AUDIENCE: Final = "mlflow"
_keys: dict[str, Any] = {}


def issuer() -> str:
    """Public address of the gateway."""
    return os.environ[ISSUER_VARIABLE]


def claims(token: str, kinds: Set[str]) -> dict[str, Any] | None:
    """What a token of one of these kinds says; None when it is none of the gateway's, or is over."""
    try:
        header = jwt.get_unverified_header(token)
        key = _key(str(header.get("kid")))
        if key is None or header.get("alg") != _ALGORITHM:
            return None
        found: dict[str, Any] = jwt.decode(
            token,
            key=key,
            algorithms=[_ALGORITHM],
            audience=_AUDIENCE,
            issuer=issuer(),
            leeway=30,
            options={"require": ["iss", "aud", "sub", "exp", "iat", "kind"]},
        )
    except jwt.PyJWTError:
        return None
    return found if found["kind"] in kinds else None


def _key(key_id: str) -> Any:  # noqa: ANN401 - a key of jwt
    """A public key of the gateway; the file is read again when it changes."""
    path = Path(os.environ[JWKS_VARIABLE])
    stamp = path.stat().st_mtime_ns
    if _keys.get("stamp") != stamp:
        found = jwt.PyJWKSet.from_dict(json.loads(path.read_text(encoding="utf-8")))
        _keys.update(stamp=stamp, keys={key.key_id: key for key in found.keys})
    return _keys["keys"].get(key_id)
