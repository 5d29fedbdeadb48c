"""`bhive-mltf join COMMAND ...`: a law command whose ranks run where torchrun or the gateway has started this one.

`torchrun --nnodes 2 --nproc-per-node 4 ... --no-python bhive-mltf join law run TrainingTask ...`: the law command is
started once, in the place of rank 0, and its training runs on all eight ranks.
"""

from __future__ import annotations

import argparse
import sys

from bhive_mltf.errors import ParameterError


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "join", help="a law command on ranks that torchrun or the gateway started", description=__doc__
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run, such as law run ...")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Take part, and end this process with the exit code that all have.

    Raises
    ------
    ParameterError : no command is given, or this process has no place among ranks.
    """
    if not options.words:
        raise ParameterError("no command: type 'bhive-mltf join law run TrainingTask ...'")
    from bhive_mltf.ranks import joined

    sys.exit(joined.join(options.words))
