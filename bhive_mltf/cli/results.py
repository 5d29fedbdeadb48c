"""`bhive-mltf results`: the trainings below a folder, their AUCs, where model, figures and MLflow page are."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bhive_mltf.errors import ParameterError

HIGHLIGHTS = 6


@dataclass(frozen=True)
class Training:
    """A directory of TrainingTask, and the evaluations that belong to it."""

    directory: Path
    name: str
    epochs_done: int
    epochs: int
    evaluations: tuple[Path, ...]
    working_points: tuple[Path, ...]


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("results", help="trainings, AUCs, figures and the MLflow page", description=__doc__)
    parser.add_argument("folder", nargs="?", help="where the tasks' outputs are (default: $DATA_PATH)")
    parser.add_argument("--training-version", help="only trainings of this version")
    parser.add_argument(
        "--lineage",
        nargs="?",
        const="",
        metavar="WHAT",
        help="ROOT files, training sets, runs and models, what was made of what; of one of them in both directions",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print what is there.

    Raises
    ------
    ParameterError : no folder is given, or it holds no training.
    """
    folder = Path(options.folder or os.environ.get("DATA_PATH") or "")
    if not options.folder and not os.environ.get("DATA_PATH"):
        raise ParameterError("no folder: give one, or run 'source setup.sh', which sets DATA_PATH")
    if options.lineage is not None:
        from bhive_mltf.cli import lineage

        lineage.show(folder, options.lineage, Console(highlight=False, soft_wrap=True))
        return
    wanted = options.training_version
    trainings = [t for t in find(folder) if wanted is None or wanted in t.directory.parts]
    if not trainings:
        raise ParameterError(f"{folder} holds no training{f' of version {wanted}' if wanted else ''}: run TrainingTask")
    console = Console(highlight=False, soft_wrap=True)
    for training in trainings:
        show(training, console)


def find(folder: Path) -> Iterator[Training]:
    """The trainings below `$DATA_PATH`, in the order of their paths."""
    for plan_path in sorted((folder / "TrainingTask").glob("**/plan.json")):
        plan = json.loads(plan_path.read_text(encoding="utf-8"))
        directory = plan_path.parent
        relative = directory.relative_to(folder / "TrainingTask")
        last = plan["epochs"] + plan["extend_training"]
        done = max((int(p.stem.split("_")[1]) + 1 for p in directory.glob("model_[0-9]*.pt")), default=0)
        yield Training(
            directory,
            str(relative),
            done,
            last,
            tuple(_evaluations(folder / "ROCCurveTask", relative, "auc.json")),
            tuple(_evaluations(folder / "WorkingPointTask", relative, "working_point.pdf")),
        )


def evaluations_of(directory: Path) -> list[Path]:
    """The directories of ROC curves of a training, beside it below the same folder of outputs."""
    for tasks in directory.absolute().parents:
        if tasks.name == "TrainingTask":
            relative = directory.absolute().relative_to(tasks)
            return list(_evaluations(tasks.with_name("ROCCurveTask"), relative, "auc.json"))
    return []


def _evaluations(folder: Path, training: Path, file: str) -> Iterator[Path]:
    """Directories of a task that evaluated `training`: the test version stands after the dataset version."""
    for found in sorted(folder.glob(f"**/{file}")):
        parts = found.parent.relative_to(folder).parts
        for position in range(2, len(parts) - 1):
            if (*parts[:position], *parts[position + 1 : -1]) == training.parts:
                yield found.parent
                break


def show(training: Training, console: Console) -> None:
    """Print one training."""
    from bhive_mltf.tracking import RunRecord, view_command

    console.print(f"[bold]{training.name}[/bold]  ({training.epochs_done} of {training.epochs} epochs)")
    best = training.directory / "best_model.pt"
    console.print(f"  best model      {best if best.exists() else 'not yet'}")
    for directory in training.evaluations:
        console.print(f"  ROC curves      {directory}")
        console.print(_auc_table(json.loads((directory / "auc.json").read_text(encoding="utf-8"))))
    for directory in training.working_points:
        console.print(f"  working points  {directory}")
    record = RunRecord.read(training.directory)
    if record is not None:
        console.print("  MLflow page     ", end="")
        console.print(view_command(record), markup=False)
    console.print()


def _auc_table(auc: dict[str, dict[str, dict[str, Any]]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 4), header_style="dim")
    for heading in ("jets of", "discriminator"):
        table.add_column(heading)
    for heading in ("AUC", "+-"):
        table.add_column(heading, justify="right")
    for process, found in auc.items():
        for label, entry in list(found.items())[:HIGHLIGHTS]:
            table.add_row(process, label, f"{entry['auc']:.4f}", f"{entry['error']:.4f}")
    return table
