"""Weights that also balance the yields of the flavours, from bins merged where they are sparse.

The common choice of jet tagging (resample every flavour to one spectrum in pt and eta and to one number of jets),
with two guards against accidents of small numbers: bins are merged with neighbours until their ratio means
something, and one rare flavour shrinks the others by a bounded factor only.
K: truth labels; P, E: bins in pt and eta.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MIN_COUNT = 50
"""Jets of the label, and of the reference, in a merged bin: a statistical uncertainty of 14 % each."""

MAX_REDUCTION = 10.0
"""How far a rare flavour may lower the common yield below that of the most abundant one."""


@dataclass(frozen=True)
class Found:
    """What a weighting gives.

    weights : float64 [K,P,E], in [0, 1], probability that a jet of this label and bin is drawn.
    regions : int64 [K,P,E], number of the merged bin that a bin is in.
    settings : numbers of the weighting, recorded.
    """

    weights: NDArray[np.float64]
    regions: NDArray[np.int64]
    settings: dict[str, float] = field(default_factory=dict)


def balanced(
    histogram: NDArray[np.int64],
    reference: int,
    min_count: int = MIN_COUNT,
    max_reduction: float = MAX_REDUCTION,
) -> Found:
    """Weights that give every label the reference's shape, and all labels the same yield as far as they reach it.

    In the merged bins g of a label, with H its counts and r the share of the reference's jets in g (sum r = 1):
    L = min over g of H / r is the largest yield with the reference's shape; over the labels,
    Y = max(min L, max L / `max_reduction`) is the common yield; N = min(L, Y) is the label's, and w = N r / H.

    A label without jets keeps weights of 1, as in `reference_shape`.

    Parameters
    ----------
    histogram : int64 [K,P,E], jets per label and bin.
    reference : the label whose shape is wanted; it must have jets.
    min_count : jets of the label and of the reference in each merged bin.
    max_reduction : 1 draws all that each label's shape allows, infinity balances all labels exactly.
    """
    filled = histogram.sum(axis=(1, 2)) > 0
    target = histogram[reference]
    regions = np.stack([merge_bins(counts, target, min_count) for counts in histogram])
    available = np.zeros(len(histogram))
    shares = np.ones(histogram.shape)
    for k in np.flatnonzero(filled):
        jets, wanted = region_sums(histogram[k], regions[k]), region_sums(target, regions[k])
        share = wanted / wanted.sum() / jets
        available[k] = 1.0 / share.max()
        shares[k] = share[regions[k]]
    common = max(available[filled].min(), available[filled].max() / max_reduction)
    yields = np.minimum(available, common)[:, None, None]
    weights = np.where(filled[:, None, None], np.minimum(yields * shares, 1.0), 1.0)
    return Found(weights, regions, {"min_count": min_count, "max_reduction": max_reduction})


def region_sums(counts: NDArray[np.int64], regions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of counts [P,E] by number of region."""
    sums = np.zeros(int(regions.max()) + 1, np.int64)
    np.add.at(sums, regions, counts)
    return sums


def merge_bins(counts: NDArray[np.int64], target: NDArray[np.int64], min_count: int) -> NDArray[np.int64]:
    """Number of the merged bin, int64 [P,E], for each bin of counts and reference counts [P,E].

    Bins in pt are merged first, over all eta, until each has enough; inside each of these, bins in eta: spectra fall
    steeply in pt and hardly in eta, so that pt keeps as many bins as it can.
    """
    both = np.stack([counts, target])
    slices = merge_neighbours(both.sum(axis=2), min_count)
    regions = np.empty(counts.shape, np.int64)
    first = 0
    for number in range(int(slices[-1]) + 1):
        rows = slices == number
        inside = merge_neighbours(both[:, rows].sum(axis=1), min_count)
        regions[rows] = first + inside
        first += int(inside[-1]) + 1
    return regions


def merge_neighbours(counts: NDArray[np.int64], min_count: int) -> NDArray[np.int64]:
    """Number of the merged bin, int64 [n], of bins in a row.

    The smallest bin joins the smaller of its neighbours, until all are large enough or one is left.

    Parameters
    ----------
    counts : int64 [D,n]; each of the D counts of a merged bin must reach `min_count`.
    """
    sums, widths = list(counts.T), [1] * counts.shape[1]
    while len(sums) > 1:
        sizes = [int(each.min()) for each in sums]
        worst = int(np.argmin(sizes))
        if sizes[worst] >= min_count:
            break
        neighbours = [i for i in (worst - 1, worst + 1) if 0 <= i < len(sums)]
        low = min(worst, min(neighbours, key=sizes.__getitem__))
        sums[low : low + 2] = [sums[low] + sums[low + 1]]
        widths[low : low + 2] = [widths[low] + widths[low + 1]]
    return np.repeat(np.arange(len(widths)), widths)
