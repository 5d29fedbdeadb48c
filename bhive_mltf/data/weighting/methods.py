"""The weightings by name.

`reference` is upstream's algorithm as it is (`weights.reference_shape`); `balanced` also equalises the yields of the
flavours and merges sparse bins (`weighting_balanced`). docs/weights.md says when to use which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.weighting import balanced
from bhive_mltf.data.weighting.grid import Grid, WeightTable, reference_shape
from bhive_mltf.data.weighting.report import WeightingReport, report
from bhive_mltf.errors import ParameterError

WEIGHTINGS = ("reference", "balanced")
NONE = "none"
"""Every jet has weight 1: of a test set without jets of the reference flavour, which cannot be trained on."""


@dataclass(frozen=True)
class Weighting:
    """The weights of a training set, and what comes of them."""

    table: WeightTable
    report: WeightingReport


def check_weighting(weighting: str) -> None:
    """ParameterError for a weighting that does not exist."""
    if weighting not in WEIGHTINGS:
        raise ParameterError(f"--weighting {weighting} does not exist: choose one of {', '.join(WEIGHTINGS)}")


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
    settings: dict[str, float] = {}
    if weighting == "balanced":
        found = balanced.balanced(histogram, position)
        weights, regions = found.weights, found.regions
        settings = {
            "min_count": balanced.MIN_COUNT,
            "max_reduction": balanced.MAX_REDUCTION,
        }
    else:
        weights = np.ones(histogram.shape) if weighting == NONE else reference_shape(histogram, position)
        cells = np.arange(histogram[0].size).reshape(histogram[0].shape)
        regions = np.broadcast_to(cells, histogram.shape)
    made = report(
        histogram,
        weights,
        regions,
        weighting=weighting,
        grid=grid,
        labels=labels,
        reference=reference,
        settings=settings,
    )
    return Weighting(WeightTable(grid, weights), made)
