"""The application that the internet reaches: it reads, takes uploads, adds rows, and never talks to SLURM."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

from bhive_mltf import __version__
from bhive_mltf.gateway.api import logs, meta, problems, projects, submissions
from bhive_mltf.gateway.api.services import Services
from bhive_mltf.gateway.identity.mint import Minter
from bhive_mltf.gateway.identity.provider import TokenVerifier
from bhive_mltf.gateway.settings import Settings
from bhive_mltf.gateway.store.database import Database
from bhive_mltf.gateway.web import entry, routes

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def make(settings: Settings, verifier: TokenVerifier | None = None) -> FastAPI:
    """The application of a gateway.

    Raises
    ------
    ConfigError : there is no signing key that can be used.
    """
    database = Database(settings.database_url)
    database.create()
    minter = Minter.load(settings.keys, settings.public_url)
    # pages that show the interface would load scripts from elsewhere
    app = FastAPI(
        title="MLTF gateway", version=__version__, docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json"
    )
    app.state.services = Services(settings, database, verifier or TokenVerifier(settings.provider), minter)
    problems.add_to(app)
    for room in (meta, projects, submissions, logs):
        app.include_router(room.router)
    app.include_router(entry.router)
    routes.add_to(app)

    @app.middleware("http")
    async def _headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["X-Request-Id"] = secrets.token_hex(8)
        if settings.public_url.startswith("https://"):
            response.headers["Strict-Transport-Security"] = "max-age=31536000"
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return app
