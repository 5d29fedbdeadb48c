"""The way of a job to the tracking server: a small HTTP server outside the sandbox that adds the token to each call.

No token enters the sandbox, and its renewal is not seen there. The relay listens on a socket file that only this job's
sandbox has, below a path of 128 random bits, since inside it is reached over the loopback interface.
"""

from __future__ import annotations

import http.client
import logging
import secrets
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bhive_mltf.gateway.inside.socket_server import SocketServer

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 120.0
# A body of at most this size is kept, so that the call can be repeated when an idle connection turns out to be closed.
_REPEATABLE: Final = 2**20
_CHUNK: Final = 2**18
# Headers of one connection (RFC 9110), and those that are the relay's to set.
_NOT_PASSED: Final = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade"),
        *("transfer-encoding", "content-length", "host", "authorization", "cookie", "expect", "proxy-connection"),
    )
)
_NOT_RETURNED: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "set-cookie", "server", "date"}
)
_METHODS_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Relay(SocketServer):
    """The relay of one node of a job.

    Parameters
    ----------
    path : of its socket; below 108 bytes.
    upstream : address of the tracking server.
    token_file : its content is the token; read for each call.
    """

    def __init__(self, path: Path, upstream: str, token_file: Path) -> None:
        self.upstream, self.token_file = urlsplit(upstream), token_file
        self.secret = secrets.token_urlsafe(16)
        super().__init__(path, _Handler)

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the tracking server."""
        kind = http.client.HTTPSConnection if self.upstream.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.upstream.hostname or "", self.upstream.port, timeout=TIMEOUT_S)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


class _Handler(BaseHTTPRequestHandler):
    """One connection of the sandbox, with one to the tracking server."""

    server: Relay
    protocol_version = "HTTP/1.1"
    timeout = 600
    _connection: http.client.HTTPConnection | None = None

    def handle(self) -> None:
        try:
            super().handle()
        finally:
            self._drop()

    def _relay(self) -> None:
        prefix = f"/{self.server.secret}/"
        # as bytes: a path may hold what is no ASCII, which the comparison in constant time refuses as text
        if not secrets.compare_digest(self.path[: len(prefix)].encode(), prefix.encode()):
            self._refuse(404, "not found")
            return
        try:
            answer = self._ask(self.server.upstream.path + self.path[len(prefix) - 1 :])
        except (OSError, http.client.HTTPException) as error:
            logger.warning("the tracking server does not answer: %s", type(error).__name__)
            self._drop()
            self._refuse(502, "the tracking server does not answer")
            return
        with answer:
            self._return(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _relay  # noqa: N815 - of the base class

    def _ask(self, path: str) -> http.client.HTTPResponse:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED}
        headers["Authorization"] = f"Bearer {self.server.token_file.read_text(encoding='ascii').strip()}"
        length = self._length()
        if length is not None and length <= _REPEATABLE:
            body = self.rfile.read(length) if length else b""
            return self._ask_again(path, headers, body)
        self._drop()
        self._connection = connection = self.server.connect()
        # http.client sends an iterable in chunks where no length is given
        if length is not None:
            headers["Content-Length"] = str(length)
        connection.request(self.command, path, self._body(length), headers, encode_chunked=length is None)
        return connection.getresponse()

    def _ask_again(self, path: str, headers: dict[str, str], body: bytes) -> http.client.HTTPResponse:
        """Ask, once more on a fresh connection where the kept one was closed by the server meanwhile."""
        is_kept = self._connection is not None
        content = None if not body and self.command in _METHODS_WITHOUT_BODY else body
        try:
            self._connection = connection = self._connection or self.server.connect()
            connection.request(self.command, path, content, headers)
            return connection.getresponse()
        except (ConnectionError, http.client.RemoteDisconnected, http.client.CannotSendRequest):
            self._drop()
            if not is_kept:
                raise
            self._connection = connection = self.server.connect()
            connection.request(self.command, path, content, headers)
            return connection.getresponse()

    def _length(self) -> int | None:
        """Bytes of the body; None for one in chunks."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            self.close_connection = True
            return None
        try:
            return max(int(self.headers.get("Content-Length") or 0), 0)
        except ValueError:
            raise http.client.HTTPException("bad length") from None

    def _body(self, length: int | None) -> Iterator[bytes]:
        if length is not None:
            yield from self._parts(length)
            return
        while (size := int(self.rfile.readline(64).split(b";")[0], 16)) > 0:
            yield from self._parts(size)
            self.rfile.readline(8)

    def _parts(self, left: int) -> Iterator[bytes]:
        while left > 0:
            part = self.rfile.read(min(left, _CHUNK))
            if not part:
                raise ConnectionError("the body ended early")
            left -= len(part)
            yield part

    def _return(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _NOT_RETURNED:
                self.send_header(name, value)
        is_empty = self.command == "HEAD" or answer.status in (204, 304)
        length = answer.headers.get("Content-Length")
        if length is not None:
            self.send_header("Content-Length", length)
        elif not is_empty:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not is_empty and (part := answer.read1(_CHUNK)):
            self.wfile.write(part if length is not None else b"%x\r\n%s\r\n" % (len(part), part))
        if not is_empty and length is None:
            self.wfile.write(b"0\r\n\r\n")
        if answer.will_close:
            self._drop()

    def _refuse(self, status: int, text: str) -> None:
        # the body was not read
        self.close_connection = True
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def address_string(self) -> str:
        return "job"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the path is a secret."""
