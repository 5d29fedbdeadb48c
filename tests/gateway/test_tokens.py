"""Access tokens: one good one, and all the others."""

import base64
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bhive_mltf.errors import ConfigError
from bhive_mltf.gateway.errors import TokenError, UpstreamError
from bhive_mltf.gateway.identity import mint
from bhive_mltf.gateway.identity.mint import Minter
from tests.gateway.keys import FakeProvider, ec_key


@pytest.fixture(scope="module")
def provider():
    return FakeProvider()


def part(content):
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def test_good_token_names_its_person(provider):
    caller = provider.verifier().verify(provider.token(preferred_username="Alice A."))
    assert (caller.subject, caller.client, caller.display) == ("alice", "cli", "Alice A.")
    assert caller.roles == {"user"}


def test_audience_may_be_one_of_several(provider):
    assert provider.verifier().verify(provider.token(aud=["other", "mltf"])).subject == "alice"


def _unsigned(provider):
    claims = jwt.decode(provider.token(), options={"verify_signature": False})
    return f"{part({'alg': 'none', 'typ': 'at+jwt', 'kid': 'k1'})}.{part(claims)}."


def _signed_with_the_public_key(provider):
    public = provider.keys["k1"].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    import hashlib
    import hmac

    claims = jwt.decode(provider.token(), options={"verify_signature": False})
    text = f"{part({'alg': 'HS256', 'typ': 'at+jwt', 'kid': 'k1'})}.{part(claims)}"
    mac = hmac.new(pem, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def _changed(provider):
    head, _, signature = provider.token().split(".")
    claims = jwt.decode(provider.token(), options={"verify_signature": False})
    return f"{head}.{part({**claims, 'sub': 'root'})}.{signature}"


FORGED = {
    "empty": lambda p: "",
    "no token": lambda p: "abc.def.ghi",
    "alg none": _unsigned,
    "HS256 with the public key": _signed_with_the_public_key,
    "claims changed": _changed,
    "another key": lambda p: p.token(key=rsa.generate_private_key(65537, 2048)),
    "unknown kid": lambda p: p.token(headers={"kid": "k9"}),
    "no kid": lambda p: p.token(headers={"kid": None}),
    "ES256 under the kid of an RSA key": lambda p: p.token(key=ec_key(), algorithm="ES256"),
    "RS512": lambda p: p.token(algorithm="RS512"),
    "expired": lambda p: p.token(exp=int(time.time()) - 60),
    "not yet": lambda p: p.token(nbf=int(time.time()) + 300),
    "without exp": lambda p: p.token(without=["exp"]),
    "without sub": lambda p: p.token(without=["sub"]),
    "without aud": lambda p: p.token(without=["aud"]),
    "empty sub": lambda p: p.token(sub=""),
    "wrong issuer": lambda p: p.token(iss="https://provider.example.evil"),
    "issuer with a slash": lambda p: p.token(iss="https://provider.example/"),
    "wrong audience": lambda p: p.token(aud="other"),
    "another client": lambda p: p.token(client_id="stranger"),
    "no client": lambda p: p.token(without=["client_id"]),
    "ID token by its nonce": lambda p: p.token(nonce="n"),
    "ID token by its type": lambda p: p.token(headers={"typ": "JWT"}, typ="ID"),
    "refresh token of Keycloak": lambda p: p.token(headers={"typ": "JWT"}, typ="Refresh"),
    "logout token": lambda p: p.token(headers={"typ": "logout+jwt"}),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_token_is_refused_and_not_repeated(provider, name):
    token = FORGED[name](provider)
    with pytest.raises(TokenError) as caught:
        provider.verifier().verify(token)
    assert not token or token not in str(caught.value)


def test_roles_by_a_path_of_keycloak(provider):
    verifier = provider.verifier(roles_claim="resource_access.mltf.roles")
    token = provider.token(resource_access={"mltf": {"roles": ["trainer", 7]}})
    assert verifier.verify(token).roles == {"trainer"}
    for strange in ({"mltf": None}, {"mltf": {"roles": "trainer"}}, "trainer", {}):
        assert verifier.verify(provider.token(resource_access=strange)).roles == frozenset()


def test_new_key_is_found_once_in_a_while(provider):
    provider = FakeProvider()
    verifier = provider.verifier()
    verifier.verify(provider.token())
    asked = provider.asked
    provider.keys["k2"] = ec_key()
    token = provider.token(key=provider.keys["k2"], algorithm="ES256", headers={"kid": "k2"})
    with pytest.raises(TokenError):
        verifier.verify(token)
    assert provider.asked == asked
    provider.time += 31
    assert verifier.verify(token).subject == "alice"
    for _ in range(50):
        with pytest.raises(TokenError):
            verifier.verify(provider.token(headers={"kid": "k9"}))
    assert provider.asked == asked + 2


def test_keys_outlast_an_outage_of_a_day():
    provider = FakeProvider()
    verifier = provider.verifier()
    verifier.verify(provider.token())
    provider.is_away = True
    provider.time += 23 * 3600
    assert verifier.verify(provider.token()).subject == "alice"
    provider.time += 2 * 3600
    with pytest.raises(UpstreamError):
        verifier.verify(provider.token())


def test_discovery_document_of_another_issuer_is_refused(provider):
    verifier = provider.verifier(issuer="https://other.example")
    with pytest.raises(UpstreamError, match="names another issuer"):
        verifier.verify(provider.token())


def test_own_tokens_are_signed_with_the_newest_key(tmp_path):
    first, second = mint.rotate(tmp_path), mint.rotate(tmp_path)
    token = Minter.load(tmp_path, "https://gateway.example").mint("u-abc", "job", 60, run="r", experiment="7")
    assert jwt.get_unverified_header(token)["kid"] == second.stem
    published = jwt.PyJWKSet.from_dict(json.loads((tmp_path / mint.JWKS_NAME).read_text()))
    assert {key.key_id for key in published.keys} == {first.stem, second.stem}
    assert "PRIVATE" not in (tmp_path / mint.JWKS_NAME).read_text()
    assert all('"d"' not in json.dumps(key) for key in json.loads((tmp_path / mint.JWKS_NAME).read_text())["keys"])
    claims = jwt.decode(token, published[second.stem], algorithms=["ES256"], audience="mlflow")
    assert (claims["sub"], claims["kind"], claims["run"]) == ("u-abc", "job", "r")


def test_key_that_others_can_read_is_refused(tmp_path):
    mint.rotate(tmp_path).chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        Minter.load(tmp_path, "https://gateway.example")
