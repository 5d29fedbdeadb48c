"""ZToQQ against QCD with the paper's ParT on 1, 2, 4 and 16 GPUs, for the report's "x1.65 with DDP".

    python benchmarks/bench_scaling.py --data DIR [--ranks 1 2 4 16] [--batch-size 512] [--precision bf16] [--json FILE]

DIR is a folder of JetClass files, of which ZToQQ and ZJetsToNuNu (QCD) are used. Weak scaling: every rank has
`--batch-size` jets, the baseline is the smallest number of ranks that is there. On one machine ranks are its GPUs, or
without one its cores; inside a SLURM allocation of several nodes `srun` starts them, one per GPU. What there is no
device for is not measured, and the table says so; rows that an earlier call left in FILE (same card and batch) are
kept. weaver-core's own DDP runs beside ours on this machine, on such jets (WEAVER_PYTHON, or `make weaver`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bench_ddp import free_port, jetclass_files, write_batches
from part import MODEL, SEED
from peer import Peer, weaver_python

from bhive_mltf import config as configs
from bhive_mltf.data.ntuples.root_dataset import open_root
from bhive_mltf.ranks.files import NEEDS_GPU_VARIABLE
from bhive_mltf.ranks.launcher import LaunchRequest
from bhive_mltf.slurm.batch_step.allocation import Allocation
from bhive_mltf.training.plan import TrainingPlan
from bhive_mltf.training.scaling.measure import ENTRYPOINT, measure
from bhive_mltf.training.scaling.table import Row

REPORTED = "the report: x1.65 with DDP; number of GPUs, batch and baseline not given"
WARM_UP, WEAVER_STEPS = 3, 5
Entry = dict[str, Any]


class Srun:
    """Starts ranks in the SLURM allocation around this process, the nodes filled one after the other."""

    def __init__(self, per_node: int) -> None:
        self._per_node = per_node

    def launch(self, request: LaunchRequest) -> None:
        allocation, ranks = Allocation.of(), request.ranks_per_node
        nodes = -(-ranks // self._per_node)
        kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        meeting = {"MASTER_ADDR": allocation.master_address(), "MASTER_PORT": str(allocation.port)}
        subprocess.run(
            [
                *("srun", f"--nodes={nodes}", f"--ntasks={ranks}", f"--ntasks-per-node={-(-ranks // nodes)}"),
                *("--kill-on-bad-exit=1", "--distribution=block:block", *ENTRYPOINT, str(request.plan)),
            ],
            env={**kept, **meeting, **({NEEDS_GPU_VARIABLE: "1"} if torch.cuda.is_available() else {})},
            check=True,
        )


def devices() -> tuple[str, int, int]:
    """What a rank computes on, how many of them a node has, and how many there are in all."""
    if torch.cuda.is_available():
        name, here = torch.cuda.get_device_name(0), torch.cuda.device_count()
    else:
        name, here = f"a core of {platform.processor() or platform.machine()}", len(os.sched_getaffinity(0))
    return name, here, here * int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))


def of_row(row: Row) -> Entry:
    return {
        "jets_per_s": row.jets_per_s,
        "byte_limit": row.byte_share,
        "flop_limit": row.flop_share,
        "waits": row.communication / row.step,
    }


def weaver_jets_per_s(arrays: Path, ranks: int, per_rank: int, bf16: bool, stack: ExitStack) -> float:
    """Of weaver-core's DDP on this machine."""
    meeting = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    cores = sorted(os.sched_getaffinity(0))
    peers = []
    for rank in range(ranks):
        own = {"SHARE": str(rank), "LOCAL_RANK": str(rank), "CORE": str(cores[rank % len(cores)])}
        own |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank)}
        own |= {"DEVICE": "cuda" if torch.cuda.is_available() else "cpu", **(meeting if ranks > 1 else {})}
        peers.append(stack.enter_context(Peer("weaver_ddp.py", [str(arrays), "in_order"], own)))
    for steps in (1, WEAVER_STEPS):
        for peer in peers:
            assert peer.about["parameters"] > 2e6
            peer.send(start=1, steps=steps, bf16=bf16)
        seconds = max(peer.answer()["seconds"] for peer in peers)
    return ranks * per_rank * WEAVER_STEPS / seconds


def measured(
    options: argparse.Namespace, ranks: Sequence[int], per_node: int, place: Path
) -> Iterator[tuple[int, Entry]]:
    files = jetclass_files(options.data)
    config = configs.with_reference(configs.load("jet_class"), "label_QCD")
    plan = TrainingPlan(
        directory=place, dataset=place / "none", root_files=files, config=config, model_name=MODEL, epochs=1,
        batch_size=options.batch_size * min(ranks), loss_weighting=True, n_threads=options.n_threads, tracking=False,
        seed=SEED, training_precision=options.precision, threads_per_rank=0 if torch.cuda.is_available() else 1,
    )  # fmt: skip
    launcher = Srun(per_node) if int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1 else None
    with open_root(config, files, seed=SEED):
        for row in measure(plan, ranks, steps=options.steps, warm_up=WARM_UP, launcher=launcher, kinds=("weak",)):
            yield row.ranks, of_row(row)
        try:
            weaver_python()
        except SystemExit as error:
            print(error)
            return
        for number in (one for one in ranks if one <= per_node):
            with ExitStack() as stack:
                own = plan.model_copy(update={"batch_size": options.batch_size * number})
                arrays = place / f"batches_{number}.npz"
                write_batches(own, files, 1 + WEAVER_STEPS, arrays, number)
                speed = weaver_jets_per_s(arrays, number, options.batch_size, options.precision == "bf16", stack)
                yield number, {"weaver_jets_per_s": speed}


def table(ranks: Sequence[int], rows: dict[str, Entry]) -> str:
    """Markdown; a row that nobody measured says so."""
    lines = [
        "| ranks | jets per rank | jets/s | baseline | byte limit | flop limit | weaver-core, jets/s | on, date |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = min((int(name) for name in rows), default=0)
    for number in ranks:
        row = rows.get(str(number))
        if row is None or "jets_per_s" not in row:
            lines.append(f"| {number} | | not measured | | | | | |")
            continue
        over = row["jets_per_s"] / rows[str(base)]["jets_per_s"]
        theirs = f"{row['weaver_jets_per_s']:,.0f}" if "weaver_jets_per_s" in row else "not measured"
        limits = " | ".join(f"{100 * row[name]:.1f} %" for name in ("byte_limit", "flop_limit"))
        lines.append(
            f"| {number} | {row['batch']} | {row['jets_per_s']:,.0f} | x{over:.2f} of {base} | {limits} | {theirs} | "
            f"{row['device']}, {row['date']} |"
        )
    return "\n".join([*lines, "", REPORTED])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 16])
    parser.add_argument(
        "--batch-size", type=int, default=512 if torch.cuda.is_available() else 64, help="jets of a rank"
    )
    parser.add_argument("--precision", default="bf16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--steps", type=int, default=20 if torch.cuda.is_available() else 4)
    parser.add_argument("--n-threads", type=int, default=2 if torch.cuda.is_available() else 0)
    parser.add_argument(
        "--json", type=Path, default=Path("ddp_scaling.json"), help="results; the folder is seen by all nodes"
    )
    options = parser.parse_args()
    device, per_node, there = devices()
    conditions = {"batch": options.batch_size, "device": f"{device}, {options.precision}, torch {torch.__version__}"}
    rows: dict[str, Entry] = json.loads(options.json.read_text()) if options.json.exists() else {}
    rows = {name: row for name, row in rows.items() if all(row[key] == value for key, value in conditions.items())}
    ranks = [number for number in sorted(options.ranks) if number <= there]
    if not ranks:
        raise SystemExit(f"there are {there} devices for {min(options.ranks)} ranks")
    with tempfile.TemporaryDirectory(dir=options.json.absolute().parent) as folder:
        for number, found in measured(options, ranks, per_node, Path(folder)):
            rows[str(number)] = {**rows.get(str(number), {}), **found, **conditions, "date": str(date.today())}
            print(f"{number} ranks:", json.dumps(found), flush=True)
            options.json.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(sorted(options.ranks), rows))
    finite = {k: v for k, row in rows.items() if not math.isnan(v := row["jets_per_s"])}
    print(json.dumps({f"jets_per_s_{name}": round(value, 1) for name, value in finite.items()}))


if __name__ == "__main__":
    sys.exit(main())
