"""`bhive-mltf dataset`: what a training set holds, whether it is whole, and the same jets in another layout."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bhive_mltf.errors import CorruptFileError, ParameterError

if TYPE_CHECKING:
    from bhive_mltf.data.dataset import Dataset

LAYOUTS = ("ArrowDataset", "LZ4Dataset")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("dataset", help="look at, check and convert training sets", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    info = _action(actions, "info", "what a training set holds", show)
    info.add_argument("--json", action="store_true", help="print one JSON object")
    _action(
        actions,
        "verify",
        "read every byte and compare with the manifest",
        verify,
        "Read every byte: checksums, each jet against the index, the digest. Exit code 1 if anything differs.",
    )
    conversion = _action(
        actions,
        "convert",
        "the same jets in another layout, or a manifest for a set of upstream",
        convert,
        "Write the same jets in the same order in another layout; the target appears whole or not at all. "
        "With --in-place, a dataset of upstream gets its manifest and index; its shards stay as they are.",
    )
    conversion.add_argument("target", nargs="?", type=Path, help="directory to make", metavar="TARGET")
    conversion.add_argument("--to", choices=LAYOUTS, help="layout to write")
    conversion.add_argument("--chunk-size", type=int, help="jets per shard (default: as they are)", metavar="N")
    conversion.add_argument("--config", help="config that the set was made with; needed without a manifest")
    conversion.add_argument("--in-place", action="store_true", help="only add manifest and index to a set of upstream")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], None],
    text: str | None = None,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=summary, description=text or f"Print {summary}.")
    parser.add_argument("directory", type=Path, help="directory of the training set", metavar="DIR")
    parser.set_defaults(run=run)
    return parser


def show(options: argparse.Namespace) -> None:
    """Print what a set holds."""
    from bhive_mltf.cli import dataset_summary
    from bhive_mltf.data.dataset import open_recorded

    summary = dataset_summary.summarise(open_recorded(options.directory))
    console = Console(highlight=False)
    if options.json:
        console.out(json.dumps(summary, indent=2))
    else:
        dataset_summary.show(summary, console)


def verify(options: argparse.Namespace) -> None:
    """Read a whole set and compare.

    Raises
    ------
    CorruptFileError : something differs; what, was printed.
    """
    from bhive_mltf.data import verification
    from bhive_mltf.data.dataset import open_recorded

    dataset = open_recorded(options.directory)
    with _progress("verify", len(dataset)) as advance:
        found = verification.problems(dataset, advance)
    for problem in found:
        Console(highlight=False, soft_wrap=True).print(problem, markup=False)
    if found:
        raise CorruptFileError(
            f"'{options.directory}' is not what its manifest says ({len(found)} differences): restore it, or build it "
            "again"
        )
    _say(f"{options.directory}: {len(dataset)} jets in {len(dataset.manifest.shards)} shards are as recorded")


def convert(options: argparse.Namespace) -> None:
    """Write a set anew, or add to a set of upstream what it lacks.

    Raises
    ------
    ParameterError : the options do not go together.
    """
    if options.in_place:
        _derive_in_place(options)
        return
    if options.target is None or options.to is None:
        raise ParameterError("convert takes a directory to make and --to LAYOUT, or --in-place for a set of upstream")
    from bhive_mltf.data.layouts import rewrite

    if options.target.exists():
        raise ParameterError(f"'{options.target}' exists: give a directory that does not, or remove it")
    with tempfile.TemporaryDirectory() as sidecar:
        dataset = _open(options, Path(sidecar))
        with _progress("convert", 2 * len(dataset)) as advance:
            manifest = rewrite.convert(dataset, options.target, options.to, options.chunk_size, advance)
    _say(
        f"{options.target}: {manifest.n_jets} jets in {len(manifest.shards)} shards of {manifest.layout}, "
        f"digest {manifest.digest[:12]} as before"
    )


def _derive_in_place(options: argparse.Namespace) -> None:
    if options.target or options.to or options.chunk_size:
        raise ParameterError(
            "--in-place never touches shards, so that it takes no target, layout or chunk size: convert to a new "
            "directory and put it in the place of the old one when it is verified"
        )
    from bhive_mltf.data.manifest import FILE_NAME

    if (options.directory / FILE_NAME).exists() and options.config is None:
        _say(f"{options.directory} has a manifest: nothing to do")
        return
    dataset = _open(options, None)
    _say(f"{options.directory}: {FILE_NAME} and index of {len(dataset)} jets, digest {dataset.manifest.digest[:12]}")


def _open(options: argparse.Namespace, sidecar: Path | None) -> Dataset:
    from bhive_mltf import config
    from bhive_mltf.data.dataset import open_dataset, open_recorded

    if options.config is None:
        return open_recorded(options.directory)
    return open_dataset(options.directory, config.load(options.config), sidecar)


def _say(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


@contextmanager
def _progress(title: str, jets: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal's error stream; nothing where there is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=jets)
        yield lambda done: progress.advance(task, done)
