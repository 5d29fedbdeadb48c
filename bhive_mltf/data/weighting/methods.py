"""The weightings by name.

`reference` is upstream's algorithm as it is (`grid.reference_shape`); `balanced` also equalises the yields of the
flavours and merges sparse bins (`balanced`). docs/weights.md says when to use which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.weighting import balanced
from bhive_mltf.data.weighting.grid import Grid, WeightTable, reference_shape
from bhive_mltf.data.weighting.report import WeightingReport, report
from bhive_mltf.errors import ParameterError

NONE = "none"
"""Every jet has weight 1: of a test set without jets of the reference flavour, which cannot be trained on."""


@dataclass(frozen=True)
class Found:
    """What a method gives.

    weights : float64 [K,P,E], probability that a jet of this label and bin is drawn.
    regions : int [K,P,E], bins with the same number count as one; for the report.
    settings : numbers of the method, recorded.
    """

    weights: NDArray[np.float64]
    regions: NDArray[np.int64]
    settings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Weighting:
    """The weights of a training set, and what comes of them."""

    table: WeightTable
    report: WeightingReport


def _each_bin(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    cells = np.arange(histogram[0].size).reshape(histogram[0].shape)
    return np.broadcast_to(cells, histogram.shape)


def _ones(histogram: NDArray[np.int64], _: int) -> Found:
    return Found(np.ones(histogram.shape), _each_bin(histogram))


def _reference(histogram: NDArray[np.int64], position: int) -> Found:
    return Found(reference_shape(histogram, position), _each_bin(histogram))


def _balanced(histogram: NDArray[np.int64], position: int) -> Found:
    found = balanced.balanced(histogram, position)
    settings = {"min_count": balanced.MIN_COUNT, "max_reduction": balanced.MAX_REDUCTION}
    return Found(found.weights, found.regions, settings)


METHODS: Mapping[str, Callable[[NDArray[np.int64], int], Found]] = {"reference": _reference, "balanced": _balanced}
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
    method = METHODS.get(weighting, _ones)
    found = method(histogram, list(labels).index(reference))
    made = report(
        histogram,
        found.weights,
        found.regions,
        weighting=weighting,
        grid=grid,
        labels=labels,
        reference=reference,
        settings=found.settings,
    )
    return Weighting(WeightTable(grid, found.weights), made)
