"""The way of a build to the package index: a proxy outside the sandbox that reaches the hosts of the index, no other.

TLS goes through it from end to end (CONNECT); an index without TLS is asked for by whole addresses, as proxies are.
"""

from __future__ import annotations

import logging
import re
import socket
import socketserver
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bhive_mltf.gateway.inside import spawn
from bhive_mltf.gateway.inside.socket_server import SocketServer

logger = logging.getLogger(__name__)
_TIMEOUT_S: Final = 60.0
_LARGEST_HEAD: Final = 64 * 1024
_PORTS: Final = {"https": 443, "http": 80}
_CONNECTION: Final = re.compile(rb"\r\n(?:proxy-)?connection:[^\r\n]*", re.IGNORECASE)


def hosts_of(index_url: str, further: Iterable[str]) -> frozenset[tuple[str, int]]:
    """Hosts and ports that a build may reach; none for an index that is a folder."""
    parts = urlsplit(index_url)
    if parts.scheme not in _PORTS:
        return frozenset()
    default = _PORTS[parts.scheme]
    found = {((parts.hostname or "").lower(), parts.port or default)}
    for one in further:
        named = urlsplit(f"//{one}")
        found.add(((named.hostname or "").lower(), named.port or default))
    return frozenset(found)


class Proxy(SocketServer):
    """The proxy of one build.

    Parameters
    ----------
    path : of its socket; below 108 bytes.
    """

    def __init__(self, path: Path, allowed: frozenset[tuple[str, int]]) -> None:
        self.allowed = allowed
        self.refused: set[str] = set()
        super().__init__(path, _Handler)


class _Handler(socketserver.BaseRequestHandler):
    """One connection of a build."""

    server: Proxy
    request: socket.socket

    def handle(self) -> None:
        self.request.settimeout(_TIMEOUT_S)
        head, rest = self._head()
        method, _, target = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        target = target.rpartition(" ")[0]
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        try:
            place = ((parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0))
        except ValueError:
            place = ("", 0)
        if place not in self.server.allowed:
            self.server.refused.add(f"{place[0]}:{place[1]}")
            self._answer(403, "this host is not one of the package index")
            return
        try:
            upstream = socket.create_connection(place, _TIMEOUT_S)
        except OSError:
            self._answer(502, "the package index does not answer")
            return
        with upstream:
            # a long download leaves one direction idle; the time limit of the build ends what hangs
            for one in (self.request, upstream):
                one.settimeout(None)
            if method == "CONNECT":
                self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                upstream.sendall(_of_origin(head, target, parts.path, parts.query))
            upstream.sendall(rest)
            spawn.exchange(self.request, upstream)

    def _head(self) -> tuple[bytes, bytes]:
        """The head of the request, and what came after it."""
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.request.recv(_LARGEST_HEAD)
            if not part or len(data) > _LARGEST_HEAD:
                raise ConnectionError("no request")
            data += part
        head, _, rest = data.partition(b"\r\n\r\n")
        return head, rest

    def _answer(self, status: int, text: str) -> None:
        content = text.encode()
        head = f"HTTP/1.1 {status} {text}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        self.request.sendall(head.encode() + content)


def _of_origin(head: bytes, target: str, path: str, query: str) -> bytes:
    """The head as the server itself takes it; one request for each connection."""
    place = (path or "/") + (f"?{query}" if query else "")
    first, _, fields = head.partition(b"\r\n")
    first = first.replace(target.encode("latin-1"), place.encode("latin-1"), 1)
    return first + _CONNECTION.sub(b"", b"\r\n" + fields) + b"\r\nConnection: close\r\n\r\n"
