"""The gateway's own tokens, the only ones that the tracking server trusts."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from bhive_mltf.errors import ConfigError
from bhive_mltf.files import atomic

AUDIENCE: Final = "mlflow"
ALGORITHM: Final = "ES256"
JWKS_NAME: Final = "jwks.json"


@dataclass(frozen=True)
class Minter:
    """Signs tokens with the newest key of a folder.

    issuer : public address of the gateway.
    """

    issuer: str
    keys: Mapping[str, ec.EllipticCurvePrivateKey]
    clock: Callable[[], float] = time.time

    @classmethod
    def load(cls, folder: Path, issuer: str) -> Minter:
        """The keys in `<name>.pem` files, readable by their owner only.

        Raises
        ------
        ConfigError : there is no key, one cannot be read, or others may read it.
        """
        keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        for path in sorted(folder.glob("*.pem")):
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"the signing key {path} can be read by others: run chmod 600 {path}")
            try:
                key = serialization.load_pem_private_key(path.read_bytes(), password=None)
            except ValueError:
                key = None
            if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
                raise ConfigError(f"{path} is no private key of the curve P-256: make one with 'keys rotate'")
            keys[path.stem] = key
        if not keys:
            raise ConfigError(f"there is no signing key in {folder}: make one with 'keys rotate'")
        return cls(issuer, keys)

    def mint(self, subject: str, kind: str, lifetime_s: float, **claims: str) -> str:
        """A token for the tracking server.

        Parameters
        ----------
        subject : the person's name in MLflow.
        kind : `user`, `job` (with the claims `run` and `experiment`), or `gateway` for the gateway's own writes.
        """
        now = int(self.clock())
        key_id = max(self.keys)
        content = {
            **claims,
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": subject,
            "kind": kind,
            "iat": now,
            "exp": now + int(lifetime_s),
            "jti": secrets.token_hex(8),
        }
        token: str = jwt.encode(content, self.keys[key_id], algorithm=ALGORITHM, headers={"kid": key_id})
        return token

    def jwks(self) -> dict[str, Any]:
        """The public keys, as published."""
        keys = []
        for name, key in self.keys.items():
            public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
            keys.append({**public, "kid": name, "use": "sig", "alg": ALGORITHM})
        return {"keys": keys}


def rotate(folder: Path) -> Path:
    """Add a signing key, which is used from the next start on; writes `jwks.json` beside it. The path of the key."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{time.time_ns():020d}.pem"
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
    atomic.write_json(folder / JWKS_NAME, Minter.load(folder, "").jwks())
    return path
