"""Errors as RFC 9457 problem documents: what, where, what to do, and never a token."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException

from bhive_mltf.gateway.errors import UpstreamError

logger = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
_TITLES = {
    400: "the request cannot be read",
    401: "sign in first",
    403: "not allowed",
    404: "not found",
    405: "no such method here",
    409: "it contradicts an earlier request",
    411: "the length is missing",
    413: "too large",
    415: "another media type is needed",
    422: "something in the request cannot be",
    429: "a limit is reached",
    503: "a service behind the gateway is away",
}


class Problem(Exception):  # noqa: N818 - the name of RFC 9457
    """An answer that is no success.

    kind : last part of its type, for programs.
    errors : fields that cannot be, each with `pointer` and `message`.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        errors: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.errors, self.headers = errors or [], headers or {}

    def response(self) -> JSONResponse:
        """The document."""
        content: dict[str, Any] = {
            "type": f"urn:mltf:{self.kind}",
            "title": _TITLES.get(self.status, "it did not work"),
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            content["errors"] = self.errors
        return JSONResponse(content, self.status, {**self.headers}, MEDIA_TYPE)


def not_found(what: str = "job") -> Problem:
    """What strangers and owners get alike for something that is not theirs or not there."""
    return Problem(404, "not-found", f"you have no such {what}")


def add_to(app: FastAPI) -> None:
    """Answer every error of the application as a problem document."""

    @app.exception_handler(Problem)
    async def _problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(UpstreamError)
    async def _upstream(_: Request, error: UpstreamError) -> JSONResponse:
        return Problem(503, "upstream", str(error), headers={"Retry-After": "10"}).response()

    @app.exception_handler(DataError)
    async def _data(_: Request, error: DataError) -> JSONResponse:  # noqa: ARG001 - its text repeats the values
        return Problem(422, "validation", "a text holds a character that cannot be stored, such as NUL").response()

    @app.exception_handler(OperationalError)
    async def _database(_: Request, error: OperationalError) -> JSONResponse:
        logger.error("the database does not answer: %s", error.orig)
        return Problem(503, "database", "the database does not answer", headers={"Retry-After": "10"}).response()

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"pointer": "/" + "/".join(map(str, one["loc"])), "message": str(one["msg"])[:500]}
            for one in error.errors()
        ]
        first = errors[0] if errors else {"pointer": "", "message": ""}
        return Problem(422, "validation", f"{first['pointer']}: {first['message']}", errors).response()

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        return Problem(error.status_code, "http", str(error.detail), headers=headers).response()
