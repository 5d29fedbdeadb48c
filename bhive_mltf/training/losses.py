"""Losses by upstream's names, per jet, and the class weights of `loss_weighting`.

B: jets; C: classes; K: truth labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bhive_mltf.errors import ParameterError
from bhive_mltf.training import names

Loss = Callable[[Tensor, Tensor], Tensor]


def create_loss(name: str, class_weights: Tensor | None = None) -> nn.Module:
    """A module `(logits [B,C], target [B]) -> loss [B]`; ParameterError for an unknown name."""
    if name not in names.LOSSES:
        raise ParameterError(f"loss_function is {name!r}, but must be one of {', '.join(names.LOSSES)}.")
    return nn.CrossEntropyLoss(weight=class_weights, reduction="none")


def class_weights(
    histogram: NDArray[np.float32], truths: Sequence[str], classes: Sequence[tuple[str, Sequence[str]]]
) -> Tensor:
    """Weights float32 [C] inverse to the abundance of each class, the largest one 1 (upstream's 4.3).

    Parameters
    ----------
    histogram : [K, n_pt, n_eta], accepted jets of the training set per truth label.
    truths : the K labels.
    classes : (class, its labels); a class without jets gets weight 0.
    """
    per_label = histogram.reshape(len(truths), -1).sum(axis=1, dtype=np.float64)
    rows = {label: i for i, label in enumerate(truths)}
    abundance = np.array([sum(per_label[rows[label]] for label in labels) for _, labels in classes])
    inverse = np.divide(1.0, abundance, out=np.zeros_like(abundance), where=abundance > 0)
    return torch.from_numpy((inverse / max(inverse.max(), np.finfo(np.float64).tiny)).astype(np.float32))
