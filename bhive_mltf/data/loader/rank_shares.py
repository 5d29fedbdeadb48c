"""Which rank computes which jets of a global batch, so that all ranks have the same work.

Ranks meet in every synchronised batch norm and in the gradients: the one with the most work decides how long a step
takes. B: jets of a global batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.index import JetIndex
from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.interface import ModelInputs

# Number of candidates at which the work on pairs of candidates equals the work on single ones; measured with the
# published ParT, where they are nearly equal for jets of 60 candidates.
EVEN_CANDIDATES = 64


def work(index: JetIndex, positions: NDArray[np.int64], inputs: ModelInputs) -> NDArray[np.int64] | None:
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


def assign(cost: NDArray[np.int64], world_size: int) -> NDArray[np.int64]:
    """The rank [B] of each jet; numbers of jets differ by one at most, and the sums of `cost` [B] by little.

    A snake deal: from the most work to the least, one jet to each rank per round, every other round in reverse order.
    A pure function, the same on every rank; ties by the order in the batch.
    """
    turn, place = np.divmod(np.arange(len(cost)), world_size)
    # Sorted as numbers that hold the place in the batch too, a fifth of the time of a stable argsort.
    bits = len(cost).bit_length()
    most_first = np.sort((cost.max(initial=0) - cost) << bits | np.arange(len(cost))) & ((1 << bits) - 1)
    ranks = np.empty(len(cost), np.int64)
    ranks[most_first] = np.where(turn % 2, world_size - 1 - place, place)
    return ranks


def rank_slice(n: int, rank: int, world_size: int) -> slice:
    """The jets of `rank` among the `n` of a global batch: contiguous, sizes differ by one at most."""
    return slice(rank * n // world_size, (rank + 1) * n // world_size)
