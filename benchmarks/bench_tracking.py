"""What tracking costs: a step of DeepJet with tracking on, failing and off, and how fast the journal takes points.

    python benchmarks/bench_tracking.py [--rounds 5]

Trainings of one epoch on jets made here take turns on one pinned core. On: a SQLite store of its own; failing: a server
that refuses every connection. The last line is one JSON object, medians over the rounds:

tracking_ms, tracking_failing_ms : what a step takes more than without tracking, in ms. step_ms : a step without.
journal_points_per_s : points of five metrics that the journal of a training takes.
identical_weights : whether all trainings gave the same bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import conditions, on_cores

from bhive_mltf import config as configs
from bhive_mltf import tracking
from bhive_mltf.data.ntuples.root_dataset import open_root
from bhive_mltf.ranks.distributed import World
from bhive_mltf.testing.jets import write_btag
from bhive_mltf.tracking.journal import Journal
from bhive_mltf.training.checkpointing.checkpoint import read_checkpoint
from bhive_mltf.training.engine import train
from bhive_mltf.training.monitoring.mlflow_observer import MlflowObserver
from bhive_mltf.training.plan import TrainingPlan

N_JETS, BATCH = 20_000, 128
N_POINTS = 5_000
REFUSED = "http://127.0.0.1:9"
WAYS = ("off", "on", "failing")


def seconds_per_step(plan: TrainingPlan, store: str) -> float:
    """One training; `store` is empty without tracking."""
    os.environ["MLFLOW_TRACKING_URI"] = store
    if plan.tracking:
        tracking.prepare(plan.directory, data_path=plan.directory, run_name="benchmark")
    train(plan, World(), observer=MlflowObserver())
    (seconds,) = np.load(plan.directory / "train_time.npy")
    return float(seconds) / (int(N_JETS * plan.train_val_split) // BATCH)


def weights(directory: Path) -> str:
    """A digest of the last model."""
    state = read_checkpoint(directory / "model_0.pt")["model_state_dict"]
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def journal_rate(directory: Path) -> float:
    """Points per second."""
    journal = Journal(directory)
    begun = time.perf_counter()
    for step in range(N_POINTS):
        journal.metrics({f"train/{name}": float(step) for name in range(5)}, step, 0)
    journal.close()
    return N_POINTS / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="not read; all benchmarks take it")
    parser.add_argument("--rounds", type=int, default=5, help="trainings of each kind that count")
    options = parser.parse_args()
    logging.getLogger("bhive_mltf").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place, on_cores([max(os.sched_getaffinity(0))]):
        folder = Path(place)
        config, jets = configs.load("DeepJet_AK4"), [str(write_btag(folder / "TT_000.root", N_JETS, 1))]
        conditions(jets)
        stores = {"off": "", "on": f"sqlite:///{folder}/mlflow.db", "failing": REFUSED}
        with open_root(config, jets, seed=1):
            for number in range(options.rounds):
                for way in WAYS:
                    directory = folder / f"{way}_{number}"
                    plan = TrainingPlan(
                        directory=directory, dataset=folder / "none", root_files=tuple(jets), config=config,
                        model_name="DeepJet", epochs=1, batch_size=BATCH, loss_weighting=True, n_threads=0,
                        tracking=way != "off", seed=1,
                    )  # fmt: skip
                    found[way].append(1e3 * seconds_per_step(plan, stores[way]))
                    print(f"{way}: {found[way][-1]:.2f} ms per step", flush=True)
        digests = {weights(folder / f"{way}_{number}") for way in WAYS for number in range(options.rounds)}
        rate = journal_rate(folder / "journal_alone")
    off = statistics.median(found["off"])
    figures: dict[str, float | bool] = {
        "tracking_ms": statistics.median(a - b for a, b in zip(found["on"], found["off"], strict=True)),
        "tracking_failing_ms": statistics.median(a - b for a, b in zip(found["failing"], found["off"], strict=True)),
        "step_ms": off,
        "journal_points_per_s": rate,
    }
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    print(json.dumps({**rounded, "identical_weights": len(digests) == 1}))


if __name__ == "__main__":
    main()
