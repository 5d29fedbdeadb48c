"""The command `bhive-mltf`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from bhive_mltf import __version__
from bhive_mltf.cli import (
    check,
    convert_checkpoint,
    dataset,
    join,
    loader_benchmark,
    replay,
    results,
    runs,
    slurm,
    tracking,
)
from bhive_mltf.errors import BhiveError, ConfigError
from bhive_mltf.files import disk

# in the order of `--help`
_COMMANDS = (results, runs, dataset, loader_benchmark, replay, tracking, slurm, join, check, convert_checkpoint)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="bhive-mltf", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    text = "a gateway that takes trainings from anywhere: 'gateway serve --dev' tries it out"
    commands.add_parser("gateway", help=text, add_help=False).set_defaults(run=_gateway)
    words = list(sys.argv[1:] if arguments is None else arguments)
    # what follows `gateway` is read by a command line of its own
    first = 1 if words[:1] == ["gateway"] else len(words)
    options = parser.parse_args(words[:first])
    options.rest = words[first:]
    try:
        options.run(options)
    except BhiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except OSError as error:
        if not disk.is_trouble(error):
            raise
        sys.stderr.write(f"error: {disk.cannot_use(error.filename or 'a file', error)}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _gateway(options: argparse.Namespace) -> None:
    """Become `python -m bhive_mltf.gateway`; ConfigError where its extra is not installed."""
    if lacking := [name for name in ("fastapi", "httpx", "jwt", "sqlalchemy", "uvicorn") if find_spec(name) is None]:
        raise ConfigError(f"the gateway needs {', '.join(lacking)}: pip install 'bhive_mltf[gateway]'")
    os.execv(sys.executable, [sys.executable, "-m", "bhive_mltf.gateway", *options.rest])  # noqa: S606 - no shell
