"""A sign-on provider of one key, without a network."""

import functools
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from bhive_mltf.gateway.errors import UpstreamError
from bhive_mltf.gateway.identity.provider import TokenVerifier
from bhive_mltf.gateway.settings import Provider

ISSUER = "https://provider.example"


@functools.cache
def _rsa_key():
    return rsa.generate_private_key(65537, 2048)


class FakeProvider:
    """Publishes its keys, signs tokens, and counts how often it is asked."""

    def __init__(self):
        self.keys = {"k1": _rsa_key()}
        self.asked, self.is_away, self.time = 0, False, time.time()

    def verifier(self, **changes):
        settings = {"issuer": ISSUER, "audiences": ("mltf",), "cli_client": "cli", "clients": ("robot",), **changes}
        return TokenVerifier(Provider(**settings), self.fetch, lambda: self.time)

    def fetch(self, url):
        self.asked += 1
        if self.is_away:
            raise UpstreamError("away")
        if url.endswith("openid-configuration"):
            places = {f"{name}_endpoint": f"{ISSUER}/{name}" for name in ("authorization", "token")}
            return {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/jwks", **places}
        return {"keys": [self.public(name) for name in self.keys]}

    def public(self, name):
        key = self.keys[name]
        kind, algorithm = (RSAAlgorithm, "RS256") if isinstance(key, rsa.RSAPrivateKey) else (ECAlgorithm, "ES256")
        return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig", "alg": algorithm}

    def token(self, key=None, algorithm="RS256", headers=None, without=(), **changes):
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": "mltf",
            "sub": "alice",
            "client_id": "cli",
            "iat": now,
            "exp": now + 600,
            "roles": ["user"],
            **changes,
        }
        claims = {name: value for name, value in claims.items() if name not in without}
        given = {"kid": "k1", "typ": "at+jwt", **(headers or {})}
        headers = {name: value for name, value in given.items() if value is not None}
        return jwt.encode(claims, self.keys["k1"] if key is None else key, algorithm=algorithm, headers=headers)


def ec_key():
    return ec.generate_private_key(ec.SECP256R1())
