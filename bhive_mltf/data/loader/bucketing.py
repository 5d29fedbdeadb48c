"""Batches of jets with about as many candidates each, so that less of a batch is padding; optional.

Within a window, jets in random order are sorted into buckets by their work, and each batch is drawn from one bucket.
Which batches there are, and in which order, is again a function of training set, seed, epoch and batch size only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.loader import philox


@dataclass(frozen=True)
class Buckets:
    """How jets are sorted.

    number : of buckets, equally full as far as whole batches allow.
    cost : of the jets at stored positions [J], int64 [J]; see `balance.work`.
    """

    number: int
    cost: Callable[[NDArray[np.int64]], NDArray[np.int64] | None]

    def arrange(
        self, positions: NDArray[np.int64], begun: int, batch_size: int, key: int, window: int
    ) -> NDArray[np.int64]:
        """The jets of a window in another order.

        The first jets complete the batch that was begun, and the last ones begin the next one: both as they come, so
        that every jet may be in any kind of batch.

        Parameters
        ----------
        positions : int64 [J], in random order.
        begun : jets of earlier windows in the batch that is not complete.
        key, window : random key of the epoch, and a number of the window.
        """
        first = -begun % batch_size
        n_batches = max(0, len(positions) - first) // batch_size
        body = positions[first : first + n_batches * batch_size]
        cost = self.cost(body) if n_batches > 1 else None
        if cost is None:
            return positions
        order = np.argsort(cost, kind="stable")
        edges = np.arange(self.number + 1) * n_batches // self.number * batch_size
        # Within a bucket the random order is kept.
        order = np.concatenate([np.sort(order[a:z]) for a, z in itertools.pairwise(edges)])
        numbers = np.arange(n_batches, dtype=np.uint64)
        turns = np.argsort(philox.random_bits(key, np.full_like(numbers, window), numbers), kind="stable")
        arranged = body[order].reshape(n_batches, batch_size)[turns].reshape(-1)
        return np.concatenate([positions[:first], arranged, positions[first + len(body) :]])
