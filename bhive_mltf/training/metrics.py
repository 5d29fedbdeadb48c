"""Loss and accuracy as sums over jets, and their histories per epoch.

B: jets; C: classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bhive_mltf.files import atomic

if TYPE_CHECKING:
    from bhive_mltf.training.losses import JetLosses

N_SUMS = 5
HISTORY_NAMES = ("loss_train", "acc_train", "loss_val", "acc_val", "train_time", "val_time")


def jet_sums(losses: JetLosses, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums over jets [5], float64, on the device of the losses.

    Loss, right answers, 1, and the two parts of the loss of a multi-task model, else 0.
    """
    with torch.no_grad():
        w = weight.double()
        right = (logits.argmax(1) == target).double()
        sums = [(losses.total.double() * w).sum(), (right * w).sum(), w.sum()]
        if losses.classes is None or losses.regression is None:
            return torch.cat([torch.stack(sums), w.new_zeros(N_SUMS - 3)])
        return torch.stack([*sums, *((part.double() * w).sum() for part in (losses.classes, losses.regression))])


@dataclass(frozen=True)
class Figures:
    """Loss and accuracy of many jets, NaN without any; of multi-task models also the two parts of the loss."""

    loss: float
    accuracy: float
    loss_cat: float | None = None
    loss_reg: float | None = None

    @classmethod
    def of(cls, sums: Tensor, multi_task: bool = False) -> Figures:
        """From summed `jet_sums`."""
        loss, right, weight, classes, regression = sums.tolist()
        values = (loss, right, classes, regression) if multi_task else (loss, right)
        return cls(*(value / weight if weight > 0 else float("nan") for value in values))

    @property
    def parts(self) -> dict[str, float]:
        """The parts of the loss by upstream's names; empty with plain models."""
        parts = {"loss_cat": self.loss_cat, "loss_reg": self.loss_reg}
        return {name: value for name, value in parts.items() if value is not None}


@dataclass
class Histories:
    """One entry per finished round (epoch, or `n_iters_per_save` iterations): losses, accuracies, and seconds."""

    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in HISTORY_NAMES})

    def append(self, train: Figures, validation: Figures, train_time: float, val_time: float) -> None:
        """Add a round."""
        row = (train.loss, train.accuracy, validation.loss, validation.accuracy, train_time, val_time)
        for name, value in zip(HISTORY_NAMES, row, strict=True):
            self.values[name].append(value)
        for part, figures in (("train", train), ("val", validation)):
            for name, value in figures.parts.items():
                self.values.setdefault(f"{name}_{part}", []).append(value)

    def write(self, directory: Path) -> None:
        """Write upstream's four files, each as a whole."""
        values = {name: np.array(entries, dtype=np.float64) for name, entries in self.values.items()}
        for name, part in (("training", "train"), ("validation", "val")):
            keys = {key: f"{key}_{part}" for key in ("loss", "acc", "loss_cat", "loss_reg")}
            arrays: dict[str, Any] = {key: values[history] for key, history in keys.items() if history in values}
            with atomic.replace_file(directory / f"{name}_metrics.npz") as path, path.open("wb") as file:
                np.savez(file, **arrays)
        for part in ("train", "val"):
            atomic.write_array(directory / f"{part}_time.npy", values[f"{part}_time"])
