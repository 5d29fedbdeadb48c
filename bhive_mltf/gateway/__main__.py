"""`bhive-mltf gateway`, or `python -m bhive_mltf.gateway`: the processes of a gateway, and its keys."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bhive_mltf.errors import BhiveError
from bhive_mltf.gateway import settings as configuration

# An idle connection is kept longer than proxies keep theirs (60 s is common): else a request meets its end.
_KEPT_S: Final = 75


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="bhive-mltf gateway", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("gateway.yml"), help="settings (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="answer requests")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--dev", action="store_true", help="all of it on this machine, with a sign-on of its own")
    serve.add_argument("--folder", type=Path, default=Path("gateway-dev"), help="files of --dev (default: %(default)s)")
    serve.set_defaults(run=_serve)
    commands.add_parser("worker", help="hand jobs in and follow them").set_defaults(run=_worker)
    db = commands.add_parser("db", help="tables of the database")
    db.add_argument("action", choices=["upgrade"], help="bring them to the newest revision; stop the processes first")
    db.set_defaults(run=_db)
    keys = commands.add_parser("keys", help="signing keys of the tracking tokens")
    keys.add_argument("action", choices=["rotate"], help="add a key; restart the processes then")
    keys.set_defaults(run=_keys)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # its lines name whole addresses
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        options.run(options)
    except BhiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _serve(options: argparse.Namespace) -> None:
    if options.dev:
        from bhive_mltf.gateway.dev.site import Site

        Site(options.folder, options.port).run(_stopped())
        return
    import uvicorn

    from bhive_mltf.gateway import app

    made = app.make(configuration.load(options.config))
    address = {"host": options.host, "port": options.port}
    uvicorn.run(made, **address, log_level="info", server_header=False, timeout_keep_alive=_KEPT_S)


def _worker(options: argparse.Namespace) -> None:
    from bhive_mltf.gateway.worker import main as worker

    worker.run(configuration.load(options.config), _stopped())


def _stopped() -> threading.Event:
    """Set by the signals that end a process."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _db(options: argparse.Namespace) -> None:
    from bhive_mltf.gateway.store import schema
    from bhive_mltf.gateway.store.database import Database

    database = Database(configuration.load(options.config).database_url)
    database.upgrade()
    sys.stdout.write(f"schema {schema.newest()}\n")
    database.close()


def _keys(options: argparse.Namespace) -> None:
    from bhive_mltf.gateway.identity import mint

    sys.stdout.write(f"{mint.rotate(configuration.load(options.config).keys)}\n")


if __name__ == "__main__":
    sys.exit(main())
