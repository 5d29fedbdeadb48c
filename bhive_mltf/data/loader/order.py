"""The order of jets in an epoch, as a pure function of (jet ids, seed, epoch).

Jets are stored in a global random order. An epoch reads a contiguous range of them: its blocks of 2048
jets in an order of their own, and the jets of 8 blocks at a time (a window) shuffled. So reading
stays contiguous, memory stays bounded, and any part of the order can be had without the rest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.errors import ParameterError, nearest

BLOCK = 2048
WINDOW = 8

Window = tuple[int, ...]


def n_blocks(jets: range) -> int:
    """Blocks of the range; they are aligned to its start, the last one may be shorter."""
    return -(-len(jets) // BLOCK)


def block_range(jets: range, block: int) -> range:
    """Stored positions of one block of the range."""
    start = jets.start + block * BLOCK
    return range(start, min(start + BLOCK, jets.stop))


def windows(jets: range, shuffle: tuple[int, int] | None = None) -> Iterator[Window]:
    """Block numbers per window, ascending inside a window.

    Parameters
    ----------
    jets : the range of stored positions.
    shuffle : (seed, epoch), or None for the stored order.
    """
    blocks = np.arange(n_blocks(jets), dtype=np.uint64)
    if shuffle is not None:
        seed, epoch = shuffle
        bits = random_bits(random_key(seed, "blocks", epoch), np.zeros_like(blocks), blocks)
        blocks = blocks[np.argsort(bits, kind="stable")]
    for first in range(0, len(blocks), WINDOW):
        yield tuple(np.sort(blocks[first : first + WINDOW]).tolist())


def window_positions(jets: range, window: Window) -> NDArray[np.int64]:
    """Stored positions of the jets of a window, ascending."""
    return np.concatenate([np.arange(r.start, r.stop, dtype=np.int64) for r in window_runs(jets, window)])


def window_runs(jets: range, window: Window) -> list[range]:
    """Stored positions of a window as few contiguous runs, ascending."""
    runs: list[range] = []
    for block in window:
        here = block_range(jets, block)
        if runs and runs[-1].stop == here.start:
            here = range(runs.pop().start, here.stop)
        runs.append(here)
    return runs


def shuffled(
    positions: NDArray[np.int64], content_id: NDArray[np.uint64], entry: NDArray[Any], seed: int, epoch: int
) -> NDArray[np.int64]:
    """The jets of one window in the order of the epoch; ties, if ever, by position.

    Parameters
    ----------
    positions : int64 [J], ascending.
    content_id, entry : [J], the ids of these jets.
    """
    bits = random_bits(random_key(seed, "window", epoch), content_id, entry.astype(np.uint64))
    # A third of the time of a stable sort: the lowest bits make room for each jet's place, so that numbers alone are
    # sorted; where the others do not decide, the stable sort does.
    places = np.uint64((1 << len(bits).bit_length()) - 1)
    numbers = (bits & ~places) | np.arange(len(bits), dtype=np.uint64)
    numbers.sort()
    jets = (numbers & places).astype(np.int64)
    numbers &= ~places
    if (numbers[1:] == numbers[:-1]).any():
        jets = np.argsort(bits, kind="stable")
    return positions[jets]


def sampled(
    probability: NDArray[np.float64], content_id: NDArray[np.uint64], entry: NDArray[Any], seed: int, epoch: int
) -> NDArray[np.bool_]:
    """Which jets [J] a weighted epoch takes; each is a matter of its own id only."""
    key = random_key(seed, "sampling", epoch)
    taken: NDArray[np.bool_] = uniform(key, content_id, entry.astype(np.uint64)) < probability
    return taken


def sampling_probability(
    weight: NDArray[Any], process: NDArray[Any], factors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Probability [J] that a weighted epoch takes a jet: its weight times the factor of its process [P]."""
    product: NDArray[np.float64] = weight.astype(np.float64) * factors[process]
    return product


def process_factors(processes: Sequence[str], weights: Mapping[str, float] | None) -> NDArray[np.float64]:
    """Process weights over the largest of them, one per process; a process that is not named counts 1.

    A larger weight keeps more jets (upstream keeps fewer, W29).

    Raises
    ------
    ParameterError
        An unknown process, a weight that is negative or not finite, no weight above 0.
    """
    weights = weights or {}
    for name, weight in weights.items():
        if name not in processes:
            known = ", ".join(nearest(name, processes))
            raise ParameterError(f"process_weights names '{name}', which is no process of the config; nearest: {known}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ParameterError(f"process_weights gives '{name}' the weight {weight}: give a number of 0 or more")
    factors = np.array([float(weights.get(name, 1.0)) for name in processes])
    if not factors.any():
        raise ParameterError("process_weights gives every process the weight 0: give at least one more than that")
    largest = float(factors.max())
    return factors / largest


_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10


def random_key(seed: int, purpose: str, *numbers: int) -> int:
    """A 64-bit key for one purpose, e.g. `random_key(seed, "sampling", epoch)`."""
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
    # In place: arrays made anew in each round took twice the time.
    p0, p1 = np.empty_like(c0), np.empty_like(c2)
    for _ in range(_ROUNDS):
        np.multiply(c0, _MULTIPLIERS[0], out=p0)
        np.multiply(c2, _MULTIPLIERS[1], out=p1)
        np.right_shift(p1, _SHIFT, out=c0)
        c0 ^= c1
        c0 ^= np.uint64(k0)
        np.right_shift(p0, _SHIFT, out=c2)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        np.bitwise_and(p1, _LOW, out=c1)
        np.bitwise_and(p0, _LOW, out=c3)
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0 | (c1 << _SHIFT)


def uniform(key: int, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) per counter, shape [J]; 53 random bits each."""
    bits = random_bits(key, high, low) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
