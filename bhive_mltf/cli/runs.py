"""`bhive-mltf compare` and `bhive-mltf reproduce`: how runs differ, and a run done once more."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bhive_mltf.errors import ParameterError, TrainingError

if TYPE_CHECKING:
    from bhive_mltf.tracking.history.differences import Difference, Since

_WIDEST = 60  # characters of a value


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands to a parser."""
    parser = commands.add_parser(
        "compare",
        help="what differs between runs, and their ROC curves in one figure",
        description="Print what differs between runs in parameters, data, code, environment and packages, and since "
        "which step their losses do; draw their ROC curves in one figure.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run id, or the directory of a training; two or more")
    _folder(parser)
    parser.add_argument("--output", type=Path, default=Path("compare"), help="folder of the figures (%(default)s)")
    parser.set_defaults(run=compare)
    parser = commands.add_parser(
        "reproduce",
        help="do a training once more, and compare the weights",
        description="Make the environment of a run from its lock, check out its code with the changes it had, check "
        "its inputs by digest, train again, and compare. Exit code 1 if the weights differ in any bit.",
    )
    parser.add_argument("run_id", metavar="RUN", help="run id, or the directory of a training")
    _folder(parser)
    parser.add_argument("--into", type=Path, help="folder for code, environment and outputs (default: reproduce_RUN)")
    parser.add_argument("--here", action="store_true", help="in the environment of this command")
    parser.add_argument("--this-code", action="store_true", help="with the code of this command")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the plan (JSON or text)"
    )
    parser.set_defaults(run=reproduce)


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", help="where the tasks' outputs are (default: $DATA_PATH)")


def compare(options: argparse.Namespace) -> None:
    """Print what differs and draw the ROC curves.

    Raises
    ------
    ParameterError : fewer than two runs.
    TrackingError : a run is not there.
    """
    from bhive_mltf.tracking.history import differences as compared
    from bhive_mltf.tracking.history import snapshot

    if len(options.runs) < 2:
        raise ParameterError("one run has nothing to be compared with: give two or more")
    folder = snapshot.default_folder(options.folder)
    runs = [snapshot.find(name, folder) for name in options.runs]
    console = Console(highlight=False, soft_wrap=True)
    for number, run in enumerate(runs, 1):
        console.print(f"run {number}  {run.run_id or '-'}  {run.directory or run.label}", markup=False)
    show(compared.differences(runs), len(runs), console)
    for number, other in enumerate(runs[1:], 2):
        losses = (one.series.get(compared.LOSS, {}) for one in (runs[0], other))
        console.print(f"run 1 and run {number}: {since(compared.first_difference(*losses))}", markup=False)
    _curves([run.directory for run in runs], options.output, console)


def _curves(directories: list[Path | None], output: Path, console: Console) -> None:
    from bhive_mltf.cli.results import evaluations_of
    from bhive_mltf.evaluation import roc_overlay

    found = {}
    for number, directory in enumerate(directories, 1):
        evaluated = evaluations_of(directory) if directory is not None else []
        if evaluated:
            found[f"run {number}"] = evaluated[-1]
    if len(found) < 2:
        console.print("no ROC curves to lay over each other: run ROCCurveTask for two of the runs or more")
        return
    for name in roc_overlay.draw(found, output):
        console.print(f"{output / name}", markup=False)


def show(found: list[Difference] | tuple[Difference, ...], n_runs: int, console: Console) -> None:
    """Print what differs as a table."""
    if not found:
        console.print("nothing recorded differs: parameters, data, code, environment and packages are the same")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("what", "", *(f"run {number}" for number in range(1, n_runs + 1))):
        table.add_column(heading, overflow="fold")
    for one in found:
        table.add_row(one.topic, one.name, *map(_short, one.values))
    console.print(table, markup=False)


def since(found: Since | None) -> str:
    """From when on losses differ, in words."""
    if found is None:
        return "their training losses are the same at all steps that both have"
    first, second = found.values
    if found.last_equal is None:
        return f"their training losses differ from the first one on, at step {found.first} ({first!r}, {second!r})"
    return (
        f"their training losses are the same up to step {found.last_equal} and differ at step {found.first} "
        f"({first!r}, {second!r})"
    )


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def reproduce(options: argparse.Namespace) -> None:
    """Train again and print what came out.

    Raises
    ------
    ParameterError, TrackingError, DataError : the run cannot be repeated; says why.
    TrainingError : the weights differ.
    """
    from bhive_mltf.tracking.history import snapshot
    from bhive_mltf.training.provenance import reproduce as repeating

    run = snapshot.find(options.run_id, snapshot.default_folder(options.folder))
    console = Console(highlight=False, soft_wrap=True)
    into = options.into or Path(f"reproduce_{run.run_id or run.label.replace('/', '_')}")
    request = repeating.Request(run, into, options.here, options.this_code, dict(map(_change, options.set)))
    outcome = repeating.reproduce(request, lambda text: console.print(text, markup=False))
    show(outcome.differences, 2, console)
    console.print(f"the run and its repetition: {since(outcome.since)}", markup=False)
    for name, tensors in outcome.weights.items():
        console.print(f"{name}: {_weights(tensors)}", markup=False)
    if not outcome.weights:
        raise TrainingError(f"no weights to compare: run {run.run_id or run.label} has no directory here any more")
    if not outcome.is_equal:
        raise TrainingError("the weights differ: the table says in what the two runs do")


def _weights(tensors: tuple[str, ...]) -> str:
    if not tensors:
        return "all weights are equal bit for bit"
    return f"{len(tensors)} tensors differ, the first of them {tensors[0]}"


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ParameterError(f"--set {text} has no value: write it as FIELD=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
