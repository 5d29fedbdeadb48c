"""Loss and accuracy as sums over jets, and their histories per epoch.

B: jets; C: classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bhive_mltf.files import atomic

N_SUMS = 3
HISTORY_NAMES = ("loss_train", "acc_train", "loss_val", "acc_val", "train_time", "val_time")


def jet_sums(losses: Tensor, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted loss, weighted number of right answers and weight [3], float64, on the device of `losses` [B]."""
    with torch.no_grad():
        w = weight.double()
        right = (logits.argmax(1) == target).double()
        return torch.stack([(losses.double() * w).sum(), (right * w).sum(), w.sum()])


@dataclass(frozen=True)
class Figures:
    """Loss and accuracy of many jets; NaN without any."""

    loss: float
    accuracy: float

    @classmethod
    def of(cls, sums: Tensor) -> Figures:
        """From summed `jet_sums`."""
        loss, right, weight = sums.tolist()
        return cls(loss / weight, right / weight) if weight > 0 else cls(float("nan"), float("nan"))


@dataclass
class Histories:
    """One entry per finished round (epoch, or `n_iters_per_save` iterations): losses, accuracies, and seconds."""

    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in HISTORY_NAMES})

    def append(self, train: Figures, validation: Figures, train_time: float, val_time: float) -> None:
        """Add a round."""
        row = (train.loss, train.accuracy, validation.loss, validation.accuracy, train_time, val_time)
        for name, value in zip(HISTORY_NAMES, row, strict=True):
            self.values[name].append(value)

    def write(self, directory: Path) -> None:
        """Write upstream's four files, each as a whole."""
        values = {name: np.array(entries, dtype=np.float64) for name, entries in self.values.items()}
        for name, part in (("training", "train"), ("validation", "val")):
            with atomic.replace_file(directory / f"{name}_metrics.npz") as path, path.open("wb") as file:
                np.savez(file, loss=values[f"loss_{part}"], acc=values[f"acc_{part}"])
        for part in ("train", "val"):
            with atomic.replace_file(directory / f"{part}_time.npy") as path, path.open("wb") as file:
                np.save(file, values[f"{part}_time"])
