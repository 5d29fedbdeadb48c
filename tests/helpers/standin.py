"""A training of seconds: a tiny model on jets in memory, as a rank of its own or in this process.

`python -m tests.helpers.standin PLAN` is what `python -m bhive_mltf.training PLAN` is for real ones.
STANDIN_KILL="rank,epoch,batch" ends that rank by SIGKILL there, once; with STANDIN_HOW it stops it (`hang`) or raises
(`raise`) instead. STANDIN_DELAY makes the kill come that many seconds later, at any place in the steps that follow.
STANDIN_SLEEP is in seconds per batch. STANDIN_POISON="rank,epoch,batch" makes an input there NaN.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from bhive_mltf.ranks.process import begin_rank, leave, run_reporting

BEGIN_RANK = begin_rank() if __name__ == "__main__" else None

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from bhive_mltf import config  # noqa: E402
from bhive_mltf.data.loader.batch_plan import split_ranges  # noqa: E402
from bhive_mltf.data.loader.loader import BatchLoader  # noqa: E402
from bhive_mltf.interface import Batch, GroupBatch, GroupInput, ModelInputs  # noqa: E402  # noqa: E402
from bhive_mltf.training.build import Ingredients, seed_model  # noqa: E402
from bhive_mltf.training.plan import TrainingPlan  # noqa: E402
from bhive_mltf.training.rank import train_rank  # noqa: E402
from tests.helpers.memory_dataset import CLASSES, make_dataset  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "tests.helpers.standin")
INPUTS = ModelInputs(
    classes=CLASSES,
    groups=(GroupInput("global", ("jet_pt", "jet_eta", "n"), 1), GroupInput("cpf", ("px", "py", "d0"), 6)),
    padding="longest",
)


class Tiny(nn.Module):
    """Candidates through a batch norm, summed, with the jet through another one."""

    inputs = INPUTS

    def __init__(self, width: int = 8, dropout: float = 0.0, unused: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Sequential(nn.Linear(width + 3, width), nn.BatchNorm1d(width), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, 3)
        if unused:
            self.never_called = nn.Linear(2, 2)

    def forward(self, batch: Batch) -> torch.Tensor:
        cpf = batch.groups["cpf"]
        tokens = self.norm(self.embed(cpf.features).transpose(1, 2)).relu() * cpf.mask[:, None]
        jet = torch.cat([tokens.sum(2), batch.groups["global"].features[:, 0]], 1)
        return self.out(self.dropout(self.head(jet)))


def dataset(n_jets: int):
    """Jets whose features tell their class."""
    made = make_dataset(n_jets, seed=3)
    rng = np.random.default_rng(5)
    label = made.block.truth.argmax(1)
    features = {}
    for name, values in made.block.features.items():
        shift = label if name == "global" else np.repeat(label, made.block.counts[name])
        noise = rng.normal(size=values.shape)
        features[name] = (noise + 0.5 * shift[:, None] * np.array([1, -1] * 3)[: values.shape[1]]).astype(np.float32)
    made.block = replace(made.block, features=features)
    return made


class HauntedError(Exception):
    """Not an error of the user."""


class Haunted:
    """A loader that may kill its process, or sleep."""

    def __init__(self, loader, world, directory: Path) -> None:
        self.loader, self.world = loader, world
        kill = os.environ.get("STANDIN_KILL", "-1,-1,-1")
        self.marker = directory / f"killed_{kill}"
        self.kill = tuple(map(int, kill.split(",")))
        self.how = os.environ.get("STANDIN_HOW", "kill")
        self.delay = float(os.environ.get("STANDIN_DELAY", "0"))
        self.sleep = float(os.environ.get("STANDIN_SLEEP", "0"))
        self.poison = tuple(map(int, os.environ.get("STANDIN_POISON", "-1,-1,-1").split(",")))

    def n_batches(self, epoch: int) -> int:
        return self.loader.n_batches(epoch)

    def epoch(self, epoch: int, start: int = 0):
        for i, batch in enumerate(self.loader.epoch(epoch, start), start):
            if (self.world.rank, epoch, i) == self.kill and not self.marker.exists():
                self.marker.touch()
                self.strike()
            if (self.world.rank, epoch, i) == self.poison:
                batch.groups["cpf"].features[0] = float("nan")
            time.sleep(self.sleep)
            yield batch

    def strike(self) -> None:
        if self.how == "raise":
            raise HauntedError("a ghost")
        number = signal.SIGSTOP if self.how == "hang" else signal.SIGKILL
        if self.delay:
            threading.Timer(self.delay, os.kill, (os.getpid(), number)).start()
        else:
            os.kill(os.getpid(), number)


def build(plan: TrainingPlan, world) -> Ingredients:
    jets = dataset(330)
    train, validation = split_ranges(jets, plan.train_val_split, plan.n_train_files)
    common = {
        "batch_size": plan.batch_size,
        "rank": world.rank,
        "world_size": world.size,
        "n_threads": plan.n_threads,
        "seed": plan.seed,
        "weighted": not plan.loss_weighting,
    }
    seed_model(plan.seed)
    return Ingredients(
        model=Tiny(**plan.model_kwargs),
        training=Haunted(BatchLoader(jets, train, INPUTS, mode="training", **common), world, plan.directory),
        validation=BatchLoader(jets, validation, INPUTS, mode="validation", **common),
        class_weights=torch.tensor([1.0, 0.5, 0.25]) if plan.loss_weighting else None,
        dataset_digest="jets in memory",
        config_digest="none",
        classes=[list(c) for c in CLASSES],
        inputs={"cpf": ["px"]},
    )


def plan(directory: Path, **values) -> TrainingPlan:
    """A plan of two short epochs."""
    defaults = {
        "directory": directory,
        "dataset": directory / "none",
        "config": config.load(str(REPOSITORY / "configs" / "offline_run3.yml")),
        "model_name": "Tiny",
        "epochs": 2,
        "batch_size": 25,
        "learning_rate": 0.01,
        "loss_weighting": True,
        "n_threads": 0,
        "ranks_per_node": 1,
        "tracking": False,
    }
    return TrainingPlan(**{**defaults, **values})


def batch(n_jets: int, global_size: int | None = None, seed: int = 0) -> Batch:
    """A batch of random jets, two columns short of nothing."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n_jets, 4, 3, generator=generator)
    return Batch(
        groups={
            "global": GroupBatch(features[:, :1], torch.ones(n_jets, 1, dtype=torch.bool), ("a", "b", "c")),
            "cpf": GroupBatch(features, torch.ones(n_jets, 4, dtype=torch.bool), ("a", "b", "c")),
        },
        target=torch.randint(0, 3, (n_jets,), generator=generator),
        weight=torch.ones(n_jets),
        jet_id=torch.zeros(n_jets, 2, dtype=torch.int64),
        process=torch.zeros(n_jets, dtype=torch.int64),
        kinematics=torch.zeros(n_jets, 2),
        global_size=global_size or n_jets,
    )


if __name__ == "__main__":
    plan_path = Path(sys.argv[1]).absolute()
    leave(run_reporting(plan_path.parent, lambda: train_rank(plan_path, build)))
