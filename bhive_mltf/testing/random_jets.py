"""Random numbers for toy jets: lists per jet, sorted and bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Axes:
    """Directions of the jets, [J] each: pt in GeV, pseudorapidity, azimuth in radian."""

    pt: Floats
    eta: Floats
    phi: Floats


class Candidates:
    """Candidates of all jets, flat: `of` repeats numbers of the jet, `jet` is the jet of each candidate."""

    def __init__(self, rng: np.random.Generator, mean: NDArray[np.float64], low: int = 0, high: int = 40) -> None:
        self.rng = rng
        self.counts: NDArray[np.int64] = np.clip(rng.poisson(mean), low, high)
        self.jet = np.repeat(np.arange(len(self.counts)), self.counts)

    def __len__(self) -> int:
        return len(self.jet)

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """Numbers of the jets [J], for each candidate [S]."""
        return np.asarray(values)[self.jet]

    def normal(self, mean: float | NDArray[Any] = 0.0, width: float | NDArray[Any] = 1.0) -> Floats:
        """Normal numbers [S]."""
        return self.rng.normal(mean, width, len(self)).astype(np.float32)

    def exponential(self, scale: float | NDArray[Any] = 1.0) -> Floats:
        """Exponential numbers [S]."""
        return self.rng.exponential(scale, len(self)).astype(np.float32)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Floats:
        """Even numbers [S]."""
        return self.rng.uniform(low, high, len(self)).astype(np.float32)

    def choice(self, values: list[float], p: list[float] | None = None) -> Floats:
        """Some of `values`, [S]."""
        return self.rng.choice(np.array(values, np.float32), len(self), p=p)

    def any(self, probability: float | NDArray[Any]) -> NDArray[np.bool_]:
        """True with a probability, [S]."""
        return self.rng.random(len(self)) < probability

    def total(self, values: NDArray[Any]) -> Floats:
        """Sums per jet, [J]."""
        return np.bincount(self.jet, values, len(self.counts)).astype(np.float32)

    def largest(self, values: NDArray[Any], empty: float) -> Floats:
        """Largest value per jet, [J]; `empty` for a jet without candidates."""
        result = np.full(len(self.counts), -np.inf, np.float32)
        np.maximum.at(result, self.jet, values.astype(np.float32))
        return np.where(self.counts > 0, result, np.float32(empty)).astype(np.float32)

    def sorted_by(self, key: NDArray[Any]) -> NDArray[np.int64]:
        """Order [S] by falling key within each jet."""
        return np.lexsort((-key, self.jet))


def spectrum(rng: np.random.Generator, n: int, low: float, high: float, power: float) -> Floats:
    """Transverse momenta that fall with a power, from `low` to `high` (GeV), [n]."""
    a, b = low**-power, high**-power
    drawn: Floats = ((a - rng.random(n) * (a - b)) ** (-1.0 / power)).astype(np.float32)
    return drawn


def wrapped(phi: NDArray[Any]) -> Floats:
    """Angles in [-pi, pi)."""
    return ((phi + np.pi) % (2 * np.pi) - np.pi).astype(np.float32)
