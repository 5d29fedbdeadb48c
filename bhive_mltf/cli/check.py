"""`bhive-mltf check`: what this machine and the folder of the outputs can do, before a night is lost."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bhive_mltf.errors import BhiveError, ParameterError
from bhive_mltf.files.checks import Finding, Level, look_at_folder, look_at_shared_memory

_COLOURS = {Level.GOOD: "green", Level.NOTE: "yellow", Level.PROBLEM: "red"}
_SLURM = ("sbatch", "squeue", "scontrol", "srun")
_ANSWER_WITHIN_S = 20.0


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("check", help="what this machine and the outputs' folder can do", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="folder of the outputs (default: $DATA_PATH)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Look, and print one line per finding.

    Raises
    ------
    ParameterError : no folder is given.
    BhiveError : something will not work.
    """
    given = options.folder or os.environ.get("DATA_PATH")
    if not given:
        raise ParameterError("no folder: give one, or run 'source setup.sh', which sets DATA_PATH")
    folder = Path(given).absolute()
    findings = [*look_at_folder(folder), look_at_shared_memory(), *_gpus(), _store(folder), _slurm()]
    show(findings, Console(highlight=False, soft_wrap=True))
    wrong = [finding.subject for finding in findings if finding.level is Level.PROBLEM]
    if wrong:
        raise BhiveError(f"not everything will work here ({', '.join(wrong)}): see the lines above")


def show(findings: list[Finding], console: Console) -> None:
    """Print one line per finding."""
    for finding in findings:
        level = f"[{_COLOURS[finding.level]}]{finding.level.value:<8}[/]"
        console.print(f"{level} {finding.subject:<14} {escape(finding.text)}")


def _gpus() -> Iterator[Finding]:
    try:
        import pynvml

        pynvml.nvmlInit()
        number, driver = pynvml.nvmlDeviceGetCount(), pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # noqa: BLE001 - no driver, or one that does not answer
        yield Finding("GPU", "no driver answers: trainings run on processors", Level.NOTE)
        return
    import torch

    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    text = f"{number} with driver {driver}; torch {torch.__version__} uses {usable}"
    if number and not usable and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        yield Finding("GPU", f"{text}: install a torch that is built for this driver", Level.PROBLEM)
    else:
        yield Finding("GPU", text)


def _store(folder: Path) -> Finding:
    from bhive_mltf.tracking import connection, store

    uri = store.tracking_uri(folder)
    shown = store.without_credentials(uri)
    path = store.sqlite_path(uri)
    if path is not None and not path.exists():
        return Finding("MLflow", f"{shown} will be made by the first training")
    try:
        connection.load()
        with connection.short_http(), connection.quiet():
            connection.connect(uri).search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001 - whatever mlflow and its libraries raise
        reason = " ".join(str(error).split())[:200]
        text = f"{shown} does not answer ({reason}): trainings run, and 'bhive-mltf tracking sync' delivers later"
        return Finding("MLflow", text, Level.NOTE)
    return Finding("MLflow", f"{shown} answers")


def _slurm() -> Finding:
    missing = [name for name in _SLURM if shutil.which(name) is None]
    if len(missing) == len(_SLURM):
        return Finding("SLURM", "no client here, which only --slurm needs", Level.NOTE)
    if missing:
        return Finding("SLURM", f"{', '.join(missing)} not found: add them to PATH", Level.PROBLEM)
    try:
        done = subprocess.run(
            ["sbatch", "--version"], capture_output=True, text=True, timeout=_ANSWER_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("SLURM", f"sbatch does not answer ({error})", Level.PROBLEM)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        return Finding("SLURM", f"its client has no cluster here ({words[-1]}), which only --slurm needs", Level.NOTE)
    return Finding("SLURM", f"{done.stdout.strip()} is here")
