"""One binning per feature for all jets: a range that holds 99 % of the values, found without keeping them.

The values of a feature are counted by the upper 16 bits of their float32 representation: 65536 buckets that are at
most 1/128 of their value wide. Counts of any parts of a set add up exactly, so that the range depends neither on the
files nor on who counts.
F: features; V: values of a feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_BUCKETS = 1 << 16
TAIL = 0.005
"""Share of the values left to the underflow, and to the overflow."""
_ISOLATED = 2.0
_FLOAT = np.finfo(np.float32)
_EXACT = 2.0**24  # from here on every float32 is an integer
_SIGN, _ALL = np.uint16(0x8000), np.uint16(0xFFFF)


@dataclass(frozen=True)
class Binning:
    """`n_bins` bins of equal width from `low` to `high`."""

    low: float
    high: float
    n_bins: int

    @property
    def width(self) -> float:
        """Width of a bin."""
        return (self.high - self.low) / self.n_bins

    @property
    def centres(self) -> NDArray[np.float64]:
        """Centres [n_bins + 2], those of the underflow and of the overflow one width outside."""
        return self.low + self.width * np.arange(-0.5, self.n_bins + 1)

    def bins(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Bins [V], 0: underflow, n_bins + 1: overflow; `high` itself lies in the last bin."""
        wide = values.astype(np.float64)
        position = np.floor((wide - self.low) * (self.n_bins / (self.high - self.low)))
        bins: NDArray[np.int64] = np.clip(position, 0, self.n_bins - 1).astype(np.int64) + 1
        bins[wide < self.low], bins[wide > self.high] = 0, self.n_bins + 1
        return bins


def buckets(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Buckets [V] of finite values; they rise with the values."""
    contiguous = np.ascontiguousarray(values) + np.float32(0)  # turns -0 into 0
    upper = (contiguous.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    rising: NDArray[np.uint16] = np.where(upper & _SIGN, upper ^ _ALL, upper | _SIGN)
    return rising


def bucket_edges(numbers: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper edges of buckets, of finite values."""
    inside = numbers.astype(np.int64)
    magnitude = np.where(inside >= N_BUCKETS // 2, inside - N_BUCKETS // 2, N_BUCKETS // 2 - 1 - inside)
    near, far = (((magnitude + step) << 16).astype(np.uint32).view(np.float32).astype(np.float64) for step in (0, 1))
    positive = inside >= N_BUCKETS // 2
    return np.where(positive, near, -far), np.where(positive, far, -near)


@dataclass(frozen=True)
class Values:
    """What is known of the values of a feature: counts by bucket [65536], extremes, whether none has a fraction."""

    counts: NDArray[np.int64]
    smallest: float
    largest: float
    integral: bool


def choose_binning(values: Values, n_bins: int) -> Binning:
    """The binning for a feature.

    The range leaves `TAIL` of the values on either side. There also a value other than 0 that stands farther from
    all others than twice their whole range, such as a default of -999, is left to underflow or overflow. Features with
    integer values only get bins whose width is an integer, with edges between integers.
    """
    filled = np.flatnonzero(values.counts)
    if not len(filled):
        return Binning(0.0, 1.0, n_bins)
    low, high = _central(filled, values.counts[filled])
    low, high = max(low, values.smallest), min(high, values.largest)
    largest = max(abs(low), abs(high))
    if values.integral and largest < _EXACT:
        first, last = np.ceil(low), np.floor(high)
        width = max(1.0, np.ceil((last - first + 1) / n_bins))
        return Binning(float(first - 0.5), float(first - 0.5 + width * n_bins), n_bins)
    # a constant, or nearly: bins must not be narrower than float32 can tell apart
    finest = n_bins * max(float(_FLOAT.eps) * largest, float(_FLOAT.smallest_subnormal))
    if high - low <= finest:
        half = max(0.5, finest)
        return Binning(low - half, low + half, n_bins)
    return Binning(low, high, n_bins)


def _central(
    filled: NDArray[np.int64], counts: NDArray[np.int64], *, default_below: bool = True, default_above: bool = True
) -> tuple[float, float]:
    """Edges of the central values; `filled` are the buckets with values, of which one per side may be a default."""
    below = np.cumsum(counts)
    first = int(np.searchsorted(below, TAIL * below[-1], side="right"))
    last = int(np.searchsorted(below, (1 - TAIL) * below[-1], side="left"))
    low, high = bucket_edges(filled[first : last + 1])
    if len(low) > 2:
        if default_below and low[0] * high[0] > 0 and low[1] - high[0] > _ISOLATED * (high[-1] - low[1]):
            rest = np.delete(filled, first), np.delete(counts, first)
            return _central(*rest, default_below=False, default_above=default_above)
        if default_above and low[-1] * high[-1] > 0 and low[-1] - high[-2] > _ISOLATED * (high[-2] - low[0]):
            rest = np.delete(filled, last), np.delete(counts, last)
            return _central(*rest, default_below=default_below, default_above=False)
    return float(low[0]), float(high[-1])
