"""Inference on several ranks: each predicts whole batches, so that every jet is computed as on one rank.

`python -m bhive_mltf.evaluation.inference PLAN` is one rank. Ranks say nothing to each other: each leaves its part of
the predictions, and the command that started them puts the parts together.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bhive_mltf.attacks.options import AttackOptions
from bhive_mltf.config import Config
from bhive_mltf.evaluation.predictions import PER_JET, Predictions, collect, conclude, join
from bhive_mltf.files import atomic, disk
from bhive_mltf.ranks.process import run_rank, slow_imports

if TYPE_CHECKING:
    from bhive_mltf.data.dataset import Dataset
    from bhive_mltf.data.loader.loader import BatchLoader
    from bhive_mltf.interface import ModelInputs
    from bhive_mltf.models.base import Tagger

ENTRYPOINT = (sys.executable, "-m", "bhive_mltf.evaluation.inference")
FILE_NAME = "inference.json"
PARTS_FOLDER = "parts"


class InferencePlan(BaseModel):
    """Everything that a rank needs; frozen. Names are those of the task's parameters.

    directory : of the inference; dataset : to predict, `dataset_sidecar` beside it if it cannot be written to;
    training : directory with `best_model.pt`. precision : float32, float64, or upstream's float16: inputs are rounded
    to it, and the computation is in float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    directory: Path
    dataset: Path
    dataset_sidecar: Path
    training: Path
    config: Config
    model_name: str
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    batch_size: int = 1024
    n_threads: int = 4
    seed: int = 123456
    unmatched: str = "error"
    precision: str = "float32"
    attack: AttackOptions = AttackOptions()
    ranks_per_node: int = 1
    threads_per_rank: int = 0
    deterministic: bool = False

    @property
    def path(self) -> Path:
        """Where the plan lies."""
        return self.directory / FILE_NAME

    def open(self) -> Dataset:
        """The jets to predict."""
        from bhive_mltf.data.dataset import open_dataset

        return open_dataset(self.dataset, self.config, self.dataset_sidecar, any_reference=True)

    def model(self) -> Tagger:
        """The best model of the training."""
        from bhive_mltf.training.checkpointing.best_model import load_best_model

        model = load_best_model(self.training, self.config, self.model_name, self.model_kwargs)
        return model.double() if self.precision == "float64" else model

    def loader(self, dataset: Dataset, jets: range, inputs: ModelInputs, *, pin_memory: bool = False) -> BatchLoader:
        """Batches of these jets in stored order; to be closed."""
        from bhive_mltf.data.loader.loader import BatchLoader

        return BatchLoader(
            dataset,
            jets,
            inputs,
            mode="inference",
            batch_size=self.batch_size,
            n_threads=self.n_threads,
            seed=self.seed,
            weighted=False,
            unmatched=self.unmatched,
            config=self.config,
            pin_memory=pin_memory,
        )


def infer(plan: InferencePlan, dataset: Dataset, model: Tagger) -> Predictions:
    """Predict each jet of the plan's `dataset` once with its `model`; in this process with one rank.

    On a GPU there are as many ranks as asked for and GPUs seen (0: all of them), on a CPU as many as asked for and
    cores had (0: one), and never more than batches. Their number changes no bit, as long as each has as many threads.

    Raises
    ------
    RankFailedError : a rank failed; all others have ended.
    DiskError : what is read or written on the way fails.
    DataError, ModelError, CheckpointError : as `predict`, and in ranks as `load_best_model`.
    """
    n_jets = len(dataset)
    size = _n_ranks(plan, n_jets)
    with disk.writing(plan.directory, reads=True):
        if size == 1:
            found = _predict(plan, dataset, model, 0, 1)
        else:
            found = _launch(plan.model_copy(update={"ranks_per_node": size}))
    return conclude(found, n_jets, input_order=dataset.manifest.jet_ids)


def share(n_jets: int, batch_size: int, rank: int, size: int) -> range:
    """The stored positions that a rank predicts: a run of whole batches, as they would be on one rank."""
    n_batches = -(-n_jets // batch_size)
    start, stop = (n_batches * number // size * batch_size for number in (rank, rank + 1))
    return range(start, min(stop, n_jets))


def _n_ranks(plan: InferencePlan, n_jets: int) -> int:
    import torch

    if torch.cuda.is_available():
        available = torch.cuda.device_count()
        asked = plan.ranks_per_node or available
    else:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        asked = plan.ranks_per_node or 1
    return max(min(asked, available, -(-n_jets // plan.batch_size)), 1)


def _launch(plan: InferencePlan) -> Predictions:
    from bhive_mltf.ranks.launcher import LaunchRequest, LocalRanks

    folder = plan.directory / PARTS_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    atomic.write_text(plan.path, plan.model_dump_json(indent=2) + "\n")
    LocalRanks(ENTRYPOINT, what="inference").launch(LaunchRequest(plan.directory, plan.path, plan.ranks_per_node))
    found = join([_read(folder / f"rank_{rank}.npz") for rank in range(plan.ranks_per_node)])
    shutil.rmtree(folder)
    return found


def _predict(plan: InferencePlan, dataset: Dataset, model: Tagger, rank: int, size: int) -> Predictions:
    """The share of a rank, in stored order."""
    import torch

    from bhive_mltf.ranks.distributed import World, pick_device, set_threads
    from bhive_mltf.training.precision import half_inputs
    from bhive_mltf.training.reproducibility import deterministic

    device, threads = pick_device(rank), torch.get_num_threads()
    set_threads(plan.threads_per_rank, World(rank, size, rank, device))
    jets = share(len(dataset), plan.batch_size, rank, size)
    loader = plan.loader(dataset, jets, model.inputs, pin_memory=device.type == "cuda")
    try:
        with deterministic(plan.deterministic):
            batches = map(half_inputs, loader.epoch(0)) if plan.precision == "float16" else loader.epoch(0)
            return collect(model, batches, device, len(jets), attack=_attack(plan, model, dataset))
    finally:
        loader.close()
        torch.set_num_threads(threads)


def _attack(plan: InferencePlan, model: Tagger, dataset: Dataset) -> Any:  # noqa: ANN401 - a function on batches, or None
    """The attack on the jets; its factors are the spreads of features in the whole set."""
    from bhive_mltf.attacks.attack import pick_attack
    from bhive_mltf.attacks.factors import feature_factors

    factors = feature_factors(dataset, model.inputs) if plan.attack.individual_factors else None
    return pick_attack(plan.attack, model, model.inputs, factors)


def _write(path: Path, part: Predictions) -> None:
    arrays = {name: getattr(part, name) for name in PER_JET}
    with atomic.replace_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream, regression_names=np.array(part.regression_names, dtype=np.str_), seconds=part.seconds, **arrays
        )


def _read(path: Path) -> Predictions:
    with np.load(path, allow_pickle=False) as arrays:
        return Predictions(
            **{name: arrays[name] for name in PER_JET},
            regression_names=tuple(map(str, arrays["regression_names"])),
            seconds=float(arrays["seconds"]),
        )


def _rank(path: Path) -> int:
    plan = InferencePlan.model_validate_json(path.read_text(encoding="utf-8"))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with slow_imports():
        dataset, model = plan.open(), plan.model()
    _write(plan.directory / PARTS_FOLDER / f"rank_{rank}.npz", _predict(plan, dataset, model, rank, size))
    return 0


if __name__ == "__main__":
    run_rank(sys.argv[1:], _rank)
