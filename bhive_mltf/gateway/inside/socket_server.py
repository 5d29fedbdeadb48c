"""A server on a socket file outside of a sandbox, which is one of the few ways out of it."""

from __future__ import annotations

import contextlib
import logging
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

logger = logging.getLogger(__name__)


class SocketServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers whoever reaches its socket, each in a thread.

    Parameters
    ----------
    path : of its socket; below 108 bytes.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(str(path), handler)
        path.chmod(0o600)

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Answer in the background."""
        thread = threading.Thread(target=self.serve_forever, args=(0.05,), name=type(self).__name__, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - of the base class
        """A program that goes away in the middle of an answer is nothing to report."""
        logger.debug("a connection was broken off")
