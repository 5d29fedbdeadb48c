"""A sign-on provider and a tracking server for `bench_gateway.py`, in a process of their own.

Arguments: the ports of the two. Reads the provider's public keys from standard input; ends when it is closed.
"""

# what the tests offer has no types
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.gateway.fake_mlflow import FakeMlflow, _Handler


class Provider(BaseHTTPRequestHandler):
    """The discovery document and the keys."""

    keys: dict[str, object]
    issuer: str

    def do_GET(self) -> None:
        document = {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/jwks", "token_endpoint": f"{self.issuer}/token"}
        content = json.dumps(self.keys if self.path == "/jwks" else document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Mlflow(FakeMlflow):
    """That of the tests at a port that was chosen before."""

    request_queue_size = 256

    def __init__(self, port: int) -> None:
        self.experiments, self.runs, self.is_away = {}, {}, False
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", port), _Handler)


def main() -> None:
    Provider.keys = json.loads(sys.stdin.readline())
    ports = [int(word) for word in sys.argv[1:]]
    Provider.issuer = f"http://127.0.0.1:{ports[0]}"
    for server in (ThreadingHTTPServer(("127.0.0.1", ports[0]), Provider), Mlflow(ports[1])):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
