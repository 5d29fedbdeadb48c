"""Which rank computes which jets of a global batch, so that all ranks have the same work.

Ranks meet in every synchronised batch norm and in the gradients: the one with the most work decides how long a step
takes. B: jets of a global batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.loader import compiled
from bhive_mltf.data.protocols import JetIndexLike
from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.interface import ModelInputs

DEAL = compiled.installed("deal")

# Number of candidates at which the work on pairs of candidates equals the work on single ones; measured with the
# published ParT, where they are nearly equal for jets of 60 candidates.
EVEN_CANDIDATES = 64


def work(index: JetIndexLike, positions: NDArray[np.int64], inputs: ModelInputs) -> NDArray[np.int64] | None:
    """Relative work [B] on the jets at these stored positions; None when all jets are the same work.

    Models that see padding (`configured`) work on all jets alike. For others a jet of n candidates, all groups
    together, costs n (n + EVEN_CANDIDATES).
    """
    groups = [group for group in inputs.groups if group.name != GLOBAL]
    if inputs.padding == "configured" or not groups:
        return None
    candidates = np.zeros(len(positions), np.int64)
    for group in groups:
        candidates += np.minimum(index.counts(group.name)[positions], group.length)
    cost: NDArray[np.int64] = candidates * (candidates + EVEN_CANDIDATES)
    return cost


def deal(cost: NDArray[np.int64], world_size: int) -> NDArray[np.int64]:
    """The rank [B] of each jet; numbers of jets differ by one at most, and the sums of `cost` [B] by little.

    As cards are dealt: from the most work to the least, one jet to each rank per round, in each round the most work
    to the rank that has the least so far. A pure function; ties by the order in the batch.
    """
    order = np.argsort(-cost, kind="stable")
    ranks = np.empty(len(cost), np.int64)
    ranks[order] = _dealt(cost[order], world_size)
    return ranks


def _dealt(falling: NDArray[np.int64], world_size: int) -> NDArray[np.int64]:
    """The rank [B] of each jet, the jets in the order of their work."""
    if DEAL is None:
        return _dealt_one_by_one(falling, world_size)
    ranks, room = np.empty(len(falling), np.int64), np.empty((2, world_size), np.int64)
    DEAL(falling.ctypes.data, len(falling), world_size, room[0].ctypes.data, room[1].ctypes.data, ranks.ctypes.data)
    return ranks


def _dealt_one_by_one(falling: NDArray[np.int64], world_size: int) -> NDArray[np.int64]:
    """What `deal.c` does."""
    costs = falling.tolist()
    loads = [0] * world_size
    dealt: list[int] = []
    for first in range(0, len(costs), world_size):
        takers = sorted(range(world_size), key=loads.__getitem__)
        for rank, more in zip(takers, costs[first : first + world_size], strict=False):
            loads[rank] += more
            dealt.append(rank)
    return np.array(dealt, np.int64)
