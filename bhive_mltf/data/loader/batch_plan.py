"""Which jets make up which global batch of an epoch. Reads the index only, never a feature.

B: jets of a global batch.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.dataset import Dataset
from bhive_mltf.data.loader import order, rank_shares
from bhive_mltf.data.loader.buffers import BatchShape
from bhive_mltf.data.loader.order import Window
from bhive_mltf.data.loader.targets import Classes, class_targets
from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.errors import DataError, ParameterError
from bhive_mltf.interface import ModelInputs

_CHUNK = order.BLOCK * order.WINDOW


@dataclass(frozen=True)
class Part:
    """Jets of a batch that lie in one window.

    window : block numbers.
    positions : int64 [b], stored positions, in the order of the batch.
    """

    window: Window
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class GlobalBatch:
    """The jets of one step, all ranks together."""

    number: int
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(len(part.positions) for part in self.parts)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Stored positions [B] in the order of the batch."""
        if len(self.parts) == 1:
            return self.parts[0].positions
        return np.concatenate([part.positions for part in self.parts])

    def pick(self, wanted: NDArray[np.bool_]) -> tuple[Part, ...]:
        """The parts of the jets where `wanted` [B] is True, in the order of the batch."""
        parts, first = [], 0
        for part in self.parts:
            chosen = part.positions[wanted[first : first + len(part.positions)]]
            if len(chosen):
                parts.append(Part(part.window, chosen))
            first += len(part.positions)
        return tuple(parts)


@dataclass(frozen=True)
class JetFilter:
    """Which jets of a training set an epoch takes.

    matched : classes of the model if jets in none of them are left out, else None.
    factors : per process, for sampling by weight; None takes every jet.
    """

    source: Dataset
    seed: int
    matched: Classes | None = None
    factors: NDArray[np.float64] | None = None

    @property
    def is_everything(self) -> bool:
        """True if no jet is ever left out."""
        return self.matched is None and self.factors is None

    def mask(self, at: slice | NDArray[np.int64], epoch: int) -> NDArray[np.bool_]:
        """For the stored jets `at`: does the epoch take them."""
        index = self.source.index
        file = index.file[at]
        taken = np.ones(len(file), np.bool_)
        if self.matched is not None:
            bits = np.asarray(index.truth_bits[at])
            taken &= class_targets(bits, self.source.schema.truths, self.matched) >= 0
        if self.factors is not None:
            probability = order.sampling_probability(index.weight[at], index.process[at], self.factors)
            content = self.source.content_ids[file]
            taken &= order.sampled(probability, content, index.entry[at], self.seed, epoch)
        return taken


class BatchPlan:
    """The global batches of any epoch over the stored jets `jets`, window by window.

    Parameters
    ----------
    wanted : which jets the epochs take.
    batch_size : jets of a global batch.
    shuffle : the order of the epoch; else the stored order.
    drop_last : leave out the last batch when it is incomplete.
    buckets : batches of jets with about as many candidates; only with `shuffle`.
    """

    def __init__(
        self,
        wanted: JetFilter,
        jets: range,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        buckets: Buckets | None = None,
    ) -> None:
        self.wanted = wanted
        self.jets = jets
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.buckets = buckets
        self._selected: dict[int, int] = {}

    def n_selected(self, epoch: int) -> int:
        """Jets that the epoch takes, those of a dropped last batch included; counted, not estimated."""
        if self.wanted.is_everything:
            return len(self.jets)
        # Without sampling all epochs take the same jets.
        which = 0 if self.wanted.factors is None else epoch
        if which not in self._selected:
            starts = range(self.jets.start, self.jets.stop, _CHUNK)
            pieces = (slice(start, min(start + _CHUNK, self.jets.stop)) for start in starts)
            self._selected[which] = sum(int(self.wanted.mask(piece, epoch).sum()) for piece in pieces)
        return self._selected[which]

    def n_batches(self, epoch: int) -> int:
        """Global batches of the epoch."""
        selected = self.n_selected(epoch)
        return selected // self.batch_size if self.drop_last else -(-selected // self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[GlobalBatch]:
        """The global batches of the epoch from number `start` on."""
        number, parts, missing = start, list[Part](), self.batch_size
        for window, positions in self._from(epoch, start * self.batch_size):
            first = 0
            while first < len(positions):
                part = Part(window, positions[first : first + missing])
                parts.append(part)
                first += missing
                missing -= len(part.positions)
                if not missing:
                    yield GlobalBatch(number, tuple(parts))
                    number, parts, missing = number + 1, [], self.batch_size
        if parts and not self.drop_last:
            yield GlobalBatch(number, tuple(parts))

    def _from(self, epoch: int, skip: int) -> Iterator[tuple[Window, NDArray[np.int64]]]:
        """Jets of the epoch by window, the first `skip` of them left out."""
        source, seed, before = self.wanted.source, self.wanted.seed, 0
        for window in order.windows(self.jets, (seed, epoch) if self.shuffle else None):
            positions = order.window_positions(self.jets, window)
            if not self.wanted.is_everything:
                positions = positions[self.wanted.mask(positions, epoch)]
            before += len(positions)
            if skip >= len(positions):
                # A window before the first wanted batch is only counted, not put in order.
                skip -= len(positions)
                continue
            if self.shuffle:
                content = source.content_ids[source.index.file[positions]]
                positions = order.shuffled(positions, content, source.index.entry[positions], seed, epoch)
                if self.buckets is not None:
                    key, begun = order.random_key(seed, "buckets", epoch), before - len(positions)
                    positions = self.buckets.arrange(positions, begun, self.batch_size, key, window[0])
            yield window, positions[skip:]
            skip = 0


@dataclass(frozen=True)
class RankBatch:
    """One rank's share of a global batch."""

    number: int
    parts: tuple[Part, ...]
    shape: BatchShape

    def write_positions(self, out: NDArray[np.int64]) -> None:
        """Write the stored positions [B] in the order of the batch."""
        if self.parts:
            np.concatenate([part.positions for part in self.parts], out=out)


class RankBatches:
    """One rank's share of the global batches of any epoch.

    balanced : the jets of a global batch go to the ranks by work; else each takes a contiguous slice.
    """

    def __init__(self, plan: BatchPlan, inputs: ModelInputs, rank: int, world_size: int, *, balanced: bool) -> None:
        self._plan, self._inputs = plan, inputs
        self._rank, self._world_size, self._balanced = rank, world_size, balanced
        self._index = plan.wanted.source.index
        self._counts = {g.name: self._index.counts(g.name) for g in inputs.groups if g.name != GLOBAL}

    def batches(self, epoch: int, start: int = 0) -> Iterator[RankBatch]:
        """The shares of an epoch from batch `start` on."""
        self._plan.wanted.source.populate_index([self._plan.jets])
        for batch in self._plan.batches(epoch, start):
            lengths = padded_lengths(self._counts, batch.positions, self._inputs)
            parts = self._share(batch) if self._world_size > 1 else batch.parts
            n_jets = sum(len(part.positions) for part in parts)
            yield RankBatch(batch.number, parts, BatchShape(n_jets, tuple(lengths.values()), len(batch)))

    def _share(self, batch: GlobalBatch) -> tuple[Part, ...]:
        """Jets of a global batch for this rank, in their order."""
        cost = rank_shares.work(self._index, batch.positions, self._inputs) if self._balanced else None
        if cost is not None:
            return batch.pick(rank_shares.assign(cost, self._world_size) == self._rank)
        own = np.zeros(len(batch), np.bool_)
        own[rank_shares.rank_slice(len(batch), self._rank, self._world_size)] = True
        return batch.pick(own)


def padded_lengths(
    counts: Mapping[str, NDArray[np.uint16]], positions: NDArray[np.int64], inputs: ModelInputs
) -> dict[str, int]:
    """N per group for the global batch at these stored positions.

    `longest` is the longest jet of the batch, at least 1 and at most the group's length.

    Parameters
    ----------
    counts : candidates per stored jet, by group.
    """
    lengths = {}
    for group in inputs.groups:
        lengths[group.name] = group.length
        if group.name != GLOBAL and inputs.padding == "longest":
            longest = int(counts[group.name][positions].max(initial=1))
            lengths[group.name] = max(1, min(longest, group.length))
    return lengths


@dataclass(frozen=True)
class Buckets:
    """How jets are sorted.

    number : of buckets, equally full as far as whole batches allow.
    cost : of the jets at stored positions [J], int64 [J]; see `rank_shares.work`.
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
        by_cost = np.argsort(cost, kind="stable")
        edges = np.arange(self.number + 1) * n_batches // self.number * batch_size
        # Within a bucket the random order is kept.
        by_cost = np.concatenate([np.sort(by_cost[a:z]) for a, z in itertools.pairwise(edges)])
        numbers = np.arange(n_batches, dtype=np.uint64)
        turns = np.argsort(order.random_bits(key, np.full_like(numbers, window), numbers), kind="stable")
        arranged = body[by_cost].reshape(n_batches, batch_size)[turns].reshape(-1)
        return np.concatenate([positions[:first], arranged, positions[first + len(body) :]])


logger = logging.getLogger(__name__)


def training_range(dataset: Dataset, n_train_files: int = -1) -> range:
    """All stored positions, or those of the first `n_train_files` shards: for a training with a validation set.

    Raises
    ------
    ParameterError
        A number of files that is neither -1 nor positive.
    DataError
        A training set without jets.
    """
    _check(dataset, n_train_files)
    edges = dataset.shard_edges
    return range(len(dataset) if n_train_files == -1 else int(edges[min(n_train_files, len(edges) - 1)]))


def _check(dataset: Dataset, n_train_files: int) -> None:
    if n_train_files != -1 and n_train_files < 1:
        raise ParameterError(f"--n-train-files is {n_train_files}: give -1 for all files, or 1 and more")
    if len(dataset) == 0:
        raise DataError("the training set has no jets: look at the rejected jets in its manifest.json")


def split_ranges(dataset: Dataset, train_val_split: float, n_train_files: int = -1) -> tuple[range, range]:
    """The stored positions that train and those that validate.

    The first `floor(N * train_val_split)` jets of the global permutation train, at least one, the rest
    validate. Foreign sets are not permuted globally: there whole files train, as upstream, unless there
    is only one. `n_train_files` cuts the training part after that many shards, -1 keeps it whole.
    When no jet is left to validate, all jets do, with a warning, as upstream.

    Raises
    ------
    ParameterError
        A split outside (0, 1], or a number of files that is neither -1 nor positive.
    DataError
        A training set without jets.
    """
    if not 0 < train_val_split <= 1:
        raise ParameterError(f"--train-val-split is {train_val_split}: give a fraction above 0 and at most 1")
    _check(dataset, n_train_files)
    n_jets = len(dataset)
    edges = [int(edge) for edge in dataset.shard_edges]
    n_shards = len(edges) - 1
    if dataset.manifest.derived and n_shards > 1:
        n_train = edges[max(1, math.floor(n_shards * train_val_split))]
    else:
        n_train = max(1, math.floor(n_jets * train_val_split))
    validation = range(n_train, n_jets)
    if not validation:
        logger.warning(
            "no jet is left to validate at --train-val-split %s: all %d jets validate, those that train too",
            train_val_split,
            n_jets,
        )
        validation = range(n_jets)
    if n_train_files != -1:
        n_train = min(n_train, edges[min(n_train_files, n_shards)])
    return range(n_train), validation
