"""The weightings by name.

`reference` is upstream's algorithm as it is (`grid.reference_shape`); `balanced` also equalises the yields of the
flavours and merges sparse bins (`balanced`). docs/weights.md says when to use which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.weighting.balanced import Found, balanced
from bhive_mltf.data.weighting.grid import Grid, reference_shape
from bhive_mltf.data.weighting.report import WeightingReport, label_report
from bhive_mltf.errors import ParameterError

NONE = "none"
"""Every jet has weight 1: of a test set without jets of the reference flavour, which cannot be trained on."""


@dataclass(frozen=True)
class Weighting:
    """The weights of a training set, float64 [K,P,E], and what comes of them."""

    weights: NDArray[np.float64]
    report: WeightingReport


def _each_bin(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    cells = np.arange(histogram[0].size).reshape(histogram[0].shape)
    return np.broadcast_to(cells, histogram.shape)


def _ones(histogram: NDArray[np.int64], _: int) -> Found:
    return Found(np.ones(histogram.shape), _each_bin(histogram))


def _reference(histogram: NDArray[np.int64], position: int) -> Found:
    return Found(reference_shape(histogram, position), _each_bin(histogram))


METHODS: Mapping[str, Callable[[NDArray[np.int64], int], Found]] = {"reference": _reference, "balanced": balanced}
"""Name -> method: from the histogram, int64 [K,P,E], and the position of the reference label."""
WEIGHTINGS = tuple(METHODS)


def check_weighting(weighting: str) -> None:
    """ParameterError for a weighting that does not exist."""
    if weighting not in METHODS:
        raise ParameterError(f"--weighting {weighting} does not exist: choose one of {', '.join(METHODS)}")


def weigh(
    histogram: NDArray[np.int64], weighting: str, *, grid: Grid, labels: Sequence[str], reference: str
) -> Weighting:
    """Weights for the jets of `histogram`, int64 [K,P,E]: jets per truth label and bin.

    weighting : one of `WEIGHTINGS`, or `NONE`.
    reference : the label whose shape is wanted; for `NONE`, that the report compares with.

    Raises
    ------
    ParameterError
        There is no such weighting.
    """
    if weighting != NONE:
        check_weighting(weighting)
    position = list(labels).index(reference)
    found = METHODS.get(weighting, _ones)(histogram, position)
    reports = tuple(
        label_report(
            label,
            histogram[k],
            found.weights[k],
            regions=found.regions[k],
            target=histogram[position],
            grid=grid,
        )
        for k, label in enumerate(labels)
    )
    return Weighting(found.weights, WeightingReport(weighting, reference, found.settings, grid, reports))
