"""Templates and files of the page, with the headers that hold it together."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any, Final

from fastapi import Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bhive_mltf.gateway.web import text

_FOLDER: Final = Path(__file__).parent
_TYPES: Final = {"htmx.min.js": "text/javascript", "style.css": "text/css", "htmx.LICENSE.txt": "text/plain"}
FILES: Final = {name: (_FOLDER / "static" / name).read_bytes() for name in _TYPES}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)


def integrity(name: str) -> str:
    """The digest of a file as browsers check it (W3C Subresource Integrity)."""
    return "sha384-" + base64.b64encode(hashlib.sha384(FILES[name]).digest()).decode()


def version(name: str) -> str:
    """A part of the address of a file that changes with its content, so that browsers may keep it."""
    return hashlib.sha256(FILES[name]).hexdigest()[:12]


_templates = Environment(
    loader=FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
_templates.globals.update(integrity=integrity, version=version)
_templates.filters.update(moment=text.moment, duration=text.duration)


def render(template: str, status: int = 200, **values: Any) -> HTMLResponse:  # noqa: ANN401 - of templates
    """A page; all values are escaped."""
    content = _templates.get_template(template).render(**values)
    return HTMLResponse(content, status, {"Content-Security-Policy": POLICY})


def static(name: str) -> Response | None:
    """One of the files of the page; None when it is none."""
    if name not in FILES:
        return None
    headers = {"Cache-Control": "public, max-age=604800"}
    return Response(FILES[name], headers=headers, media_type=f"{_TYPES[name]}; charset=utf-8")
