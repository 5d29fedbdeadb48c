"""Losses by upstream's names, per jet, and the class weights of `loss_weighting`.

B: jets; C: classes; R: regression outputs; K: truth labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bhive_mltf.errors import ModelError, ParameterError
from bhive_mltf.models.base import Outputs
from bhive_mltf.training import choices

if TYPE_CHECKING:
    from bhive_mltf.interface import Batch
    from bhive_mltf.models.base import Tagger


class JetLosses(NamedTuple):
    """Loss of each jet [B]; of a multi-task model also its two parts, whose sum it is."""

    total: Tensor
    classes: Tensor | None = None
    regression: Tensor | None = None


class CrossEntropyLogCosh(nn.Module):
    """Cross-entropy of the classes plus, for each regression output, log-cosh or the pinball loss of a quantile.

    levels : [R], `names.LOG_COSH` or the quantile in (0, 1). All terms have weight 1, upstream's lambda and gamma.
    """

    def __init__(self, levels: Sequence[float], class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.classes = nn.CrossEntropyLoss(weight=class_weights, reduction="none")

    def forward(self, logits: Tensor, target: Tensor, values: Tensor, wanted: Tensor) -> JetLosses:
        """Losses [B] of logits [B,C], target [B], regression values and what they should be, both [B,R]."""
        terms = [
            log_cosh(value - aim) if level == choices.LOG_COSH else pinball(aim - value, level)
            for level, value, aim in zip(self.levels, values.unbind(1), wanted.to(values.dtype).unbind(1), strict=True)
        ]
        classes, regression = self.classes(logits, target), torch.stack(terms).sum(0)
        return JetLosses(classes + regression, classes, regression)


def log_cosh(x: Tensor) -> Tensor:
    """Logarithm of cosh x, without overflow."""
    return x + F.softplus(-2 * x) - math.log(2)


def pinball(above: Tensor, level: float) -> Tensor:
    """Loss whose minimum is the quantile `level`; `above` = value - quantile (Koenker and Bassett, 1978)."""
    return torch.maximum(level * above, (level - 1) * above)


def create_loss(name: str, class_weights: Tensor | None = None) -> nn.Module:
    """A module that `jet_losses` calls; ParameterError for an unknown name."""
    if name not in choices.LOSSES:
        raise ParameterError(f"loss_function is {name!r}, but must be one of {', '.join(choices.LOSSES)}")
    if name in choices.REGRESSION_LOSSES:
        return CrossEntropyLogCosh(choices.REGRESSION_LOSSES[name], class_weights)
    return nn.CrossEntropyLoss(weight=class_weights, reduction="none")


def jet_losses(loss: nn.Module, model: nn.Module, output: Tensor | Outputs, batch: Batch) -> tuple[Tensor, JetLosses]:
    """Logits [B,C] and losses [B] of what `model` gave for `batch`, in at least float32.

    Jets in no class have some loss, which is not to be counted.
    """
    target = batch.target.clamp(min=0)
    logits = _wide(output.logits if isinstance(output, Outputs) else output)
    _check_width(model, logits)
    if not isinstance(output, Outputs):
        return logits, JetLosses(loss(logits, target))
    wanted = cast("Tagger", model).regression_targets(batch)
    return logits, loss(logits, target, _wide(output.regression), wanted)


def _check_width(model: nn.Module, logits: Tensor) -> None:
    n_classes = len(getattr(model, "classes", ())) or logits.shape[1]
    if logits.shape[1] != n_classes:
        name = getattr(model, "name", type(model).__name__)
        raise ModelError(f"model {name} gives {logits.shape[1]} logits for its {n_classes} classes")


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


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
