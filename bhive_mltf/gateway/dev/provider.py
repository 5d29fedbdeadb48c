"""A sign-on provider for one machine: whoever types a name is signed in. It listens on the loopback interface only.

Enough of OpenID Connect for the gateway's two clients: discovery, the code flow with PKCE (RFC 7636), the device grant
(RFC 8628), refresh tokens that change with each use, and revocation. Names that begin with `admin` are operators.
Everything is in memory: a restart signs all people out.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import secrets
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, urlencode

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jwt.algorithms import ECAlgorithm

CLI: Final = "mltf-cli"
WEB: Final = "mltf-web"
AUDIENCE: Final = "mltf"
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_TOKEN_S: Final = 600
_CODE_S: Final = 600.0
_PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Sign in</title>
<h1>Sign in</h1><p>For trying things out: any name, no password. Names that begin with "admin" are operators.</p>
<form method="post" action="{action}">{hidden}
<p><label>Name <input name="login" required autofocus maxlength="60"></label></p>
<p><button>Sign-in</button></p></form>"""


@dataclass
class _Asked:
    """A sign-in that was begun: of a page by its code, of a terminal by its device code."""

    client: str
    name: str = ""
    nonce: str = ""
    challenge: str = ""
    user_code: str = ""
    until: float = field(default_factory=lambda: time.time() + _CODE_S)


class Provider:
    """What is known of people who sign in.

    Parameters
    ----------
    issuer : its address.
    redirect : where the gateway's page wants browsers back; no other place is gone to.
    """

    def __init__(self, issuer: str, redirect: str) -> None:
        self.issuer, self.redirect = issuer, redirect
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._asked: dict[str, _Asked] = {}
        self._refresh: dict[str, tuple[str, str]] = {}

    def document(self) -> dict[str, Any]:
        """The discovery document."""
        names = {"authorization": "authorize", "token": "token", "revocation": "revoke"}
        names["device_authorization"] = "device_authorization"
        places = {f"{name}_endpoint": f"{self.issuer}/{path}" for name, path in names.items()}
        return {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/jwks", **places}

    def jwks(self) -> dict[str, Any]:
        """The public key."""
        public = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [{**public, "kid": "dev", "use": "sig", "alg": "ES256"}]}

    def begin_at_terminal(self, client: str) -> dict[str, Any]:
        """The answer to a program that wants somebody to sign in."""
        device_code, user_code = secrets.token_urlsafe(32), secrets.token_hex(4).upper()
        self._asked[device_code] = _Asked(client, user_code=user_code)
        place = f"{self.issuer}/device"
        answer = {"verification_uri": place, "verification_uri_complete": f"{place}?user_code={user_code}"}
        return {**answer, "device_code": device_code, "user_code": user_code, "expires_in": _CODE_S, "interval": 1}

    def approve(self, user_code: str, name: str) -> bool:
        """Sign in the program that shows this code; False when none does."""
        for asked in self._asked.values():
            if asked.user_code and hmac.compare_digest(asked.user_code, user_code.strip().upper()):
                asked.name = name
                return True
        return False

    def code(self, asked: dict[str, str]) -> str:
        """The code that a browser brings back to the page."""
        code = secrets.token_urlsafe(32)
        self._asked[code] = _Asked(WEB, asked["login"], asked.get("nonce", ""), asked.get("code_challenge", ""))
        return code

    def grant(self, form: dict[str, str]) -> dict[str, Any]:
        """The answer of the token endpoint; `error` in it when there are no tokens."""
        kind, client = form.get("grant_type"), form.get("client_id", "")
        if kind == "refresh_token":
            owner, name = self._refresh.pop(form.get("refresh_token", ""), ("", ""))
            return self._tokens(name, client) if owner and owner == client else {"error": "invalid_grant"}
        if kind not in ("authorization_code", DEVICE_GRANT):
            return {"error": "unsupported_grant_type"}
        of_a_page = kind == "authorization_code"
        key = form.get("code" if of_a_page else "device_code", "")
        asked = self._asked.get(key)
        if asked is None or asked.client != client or asked.until < time.time() or of_a_page == bool(asked.user_code):
            return {"error": "invalid_grant"}
        if not of_a_page and not asked.name:
            return {"error": "authorization_pending"}
        del self._asked[key]
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if of_a_page and not hmac.compare_digest(challenge.encode(), asked.challenge.encode()):
            return {"error": "invalid_grant"}
        return self._tokens(asked.name, client, asked.nonce)

    def revoke(self, token: str) -> None:
        """Forget a refresh token."""
        self._refresh.pop(token, None)

    def _tokens(self, name: str, client: str, nonce: str = "") -> dict[str, Any]:
        roles = ["user", "admin"] if name.startswith("admin") else ["user"]
        access = self._sign("at+jwt", name, aud=AUDIENCE, client_id=client, roles=roles, preferred_username=name)
        answer = {"access_token": access, "token_type": "Bearer", "expires_in": _TOKEN_S}
        if client == WEB:
            return {**answer, "id_token": self._sign("JWT", name, aud=WEB, nonce=nonce)}
        refresh = secrets.token_urlsafe(32)
        self._refresh[refresh] = (client, name)
        return {**answer, "refresh_token": refresh}

    def _sign(self, kind: str, name: str, **claims: object) -> str:
        now = int(time.time())
        content = {"iss": self.issuer, "sub": name, "iat": now, "exp": now + _TOKEN_S, **claims}
        signed: str = jwt.encode(content, self._key, algorithm="ES256", headers={"kid": "dev", "typ": kind})
        return signed


def make(issuer: str, redirect: str) -> FastAPI:
    """The provider as an application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    provider = Provider(issuer, redirect)
    app.get("/.well-known/openid-configuration")(provider.document)
    app.get("/jwks")(provider.jwks)

    @app.post("/device_authorization")
    async def _begin(request: Request) -> Response:
        return JSONResponse(provider.begin_at_terminal((await _form(request)).get("client_id", "")))

    @app.get("/device")
    def _ask_device(user_code: str = "") -> Response:
        return _page("/device", {"user_code": user_code})

    @app.post("/device")
    async def _device(request: Request) -> Response:
        form = await _form(request)
        found = provider.approve(form.get("user_code", ""), form.get("login", ""))
        text = "Success: go back to your terminal" if found else "There is no such code: begin again"
        return HTMLResponse(f"<!doctype html><title>Sign in</title><p>{text}", 200 if found else 400)

    @app.get("/authorize")
    def _ask(request: Request) -> Response:
        asked = dict(request.query_params)
        if asked.get("redirect_uri") != redirect or asked.get("client_id") != WEB:
            return HTMLResponse("<!doctype html><p>This is not the page that the provider knows", 400)
        return _page("/authorize", {name: asked.get(name, "") for name in ("state", "nonce", "code_challenge")})

    @app.post("/authorize")
    async def _authorize(request: Request) -> Response:
        form = await _form(request)
        if not form.get("login"):
            return HTMLResponse("<!doctype html><p>A name is needed", 400)
        answer = {"code": provider.code(form), "state": form.get("state", "")}
        return RedirectResponse(f"{redirect}?{urlencode(answer)}", 303)

    @app.post("/token")
    async def _token(request: Request) -> Response:
        answer = provider.grant(await _form(request))
        return JSONResponse(answer, 400 if "error" in answer else 200, {"Cache-Control": "no-store"})

    @app.post("/revoke")
    async def _revoke(request: Request) -> Response:
        provider.revoke((await _form(request)).get("token", ""))
        return Response()

    return app


async def _form(request: Request) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs((await request.body()).decode("utf-8", "replace")).items()}


def _page(action: str, hidden: dict[str, str]) -> Response:
    fields = "".join(f'<input type="hidden" name="{name}" value="{html.escape(v)}">' for name, v in hidden.items())
    return HTMLResponse(_PAGE.format(action=action, hidden=fields))


def main() -> None:
    """Serve; arguments: the port, and the address of the gateway."""
    port, gateway = int(sys.argv[1]), sys.argv[2]
    app = make(f"http://127.0.0.1:{port}", f"{gateway}/auth/callback")
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
