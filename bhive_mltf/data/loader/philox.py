"""Counter-based random numbers: Philox4x32-10, vectorised over counters.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A number depends only on
its key and its counter, so that whoever needs the number of one jet computes just that one.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10


def key(seed: int, purpose: str, *numbers: int) -> int:
    """A 64-bit key for one purpose, e.g. `key(seed, "sampling", epoch)`."""
    text = "/".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def random_bits(key: int, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random bits per counter `(high, low)`.

    Parameters
    ----------
    key : 64-bit key.
    high, low : uint64 arrays of one shape [J]; the 128-bit counters.

    Returns
    -------
    uint64 [J]
    """
    c0, c1 = low & _LOW, low >> _SHIFT
    c2, c3 = high & _LOW, high >> _SHIFT
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0 | (c1 << _SHIFT)


def uniform(key: int, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) per counter, shape [J]; 53 random bits each."""
    bits = random_bits(key, high, low) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
