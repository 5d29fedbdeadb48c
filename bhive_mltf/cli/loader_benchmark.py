"""`bhive-mltf loader-benchmark`: how fast a training set is read for a model, and where the time goes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from bhive_mltf.data.loader.benchmark import LoaderProfile


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "loader-benchmark", help="where the time of the loader goes", description=f"{__doc__} Nothing is trained."
    )
    parser.add_argument("directory", type=Path, help="directory of the training set", metavar="DIR")
    parser.add_argument("--config", required=True, help="config that the set was made with")
    parser.add_argument("--model-name", required=True, help="model whose inputs are read")
    parser.add_argument("--batch-size", type=int, default=512, metavar="N", help="jets per batch (default: 512)")
    parser.add_argument("--n-threads", type=int, default=0, metavar="N", help="loader workers to measure too")
    parser.add_argument("--batches", type=int, default=200, metavar="N", help="batches at most (default: 200)")
    parser.add_argument("--weighted", action="store_true", help="sample jets by their weight")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    from bhive_mltf import config as configs
    from bhive_mltf.data.dataset import open_dataset
    from bhive_mltf.data.loader.benchmark import profile
    from bhive_mltf.models import registry

    config = configs.load(options.config)
    dataset = open_dataset(options.directory, config)
    found = profile(
        dataset,
        registry.create(options.model_name, config).inputs,
        batch_size=options.batch_size,
        n_threads=options.n_threads,
        max_batches=options.batches,
        weighted=options.weighted,
    )
    if options.json:
        print(json.dumps({**dataclasses.asdict(found), "over_memcpy": found.over_memcpy}))
    else:
        show(found, Console(highlight=False))


def show(found: LoaderProfile, console: Console) -> None:
    """Print a profile."""
    from bhive_mltf.data.loader.benchmark import STAGES

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage")
    for heading in ("first epoch", "later", "share"):
        table.add_column(heading, justify="right")
    table.add_column("what", overflow="fold")
    total = sum(found.later.values())
    for stage, what in STAGES.items():
        if found.first[stage]:
            share = f"{100 * found.later[stage] / total:.0f} %"
            table.add_row(stage, f"{found.first[stage]:.3f}", f"{found.later[stage]:.3f}", share, what)
    table.add_row("sum", f"{sum(found.first.values()):.3f}", f"{total:.3f}", "", "ms per batch")
    table.add_row(
        "memcpy", "", f"{found.memcpy:.3f}", "", f"the {found.bytes_per_batch / 1e6:.2f} MB of a batch copied"
    )
    console.print(table)
    console.print(f"{found.over_memcpy:.2f} x memcpy, {found.n_batches} batches of {found.batch_size} jets")
    for workers, rate in found.rates.items():
        console.print(f"{rate:,.0f} jets/s with {workers} workers")
