"""`bhive-mltf replay`: repeat a step whose loss or gradient was not finite, and name what went wrong."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "replay", help="repeat a training step whose loss or gradient was not finite", description=__doc__
    )
    parser.add_argument("file", type=Path, help="nonfinite/step_<number>.json of a training", metavar="FILE")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Repeat the step and print what was found; nothing is trained or written."""
    from bhive_mltf.training.debugging.replay import replay

    sys.stdout.write("\n".join(replay(options.file)) + "\n")
