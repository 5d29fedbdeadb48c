"""Which jets make up which global batch of an epoch. Reads the index only, never a feature.

B: jets of a global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.loader import order, philox
from bhive_mltf.data.loader.bucketing import Buckets
from bhive_mltf.data.loader.order import Window
from bhive_mltf.data.loader.targets import Classes, class_targets
from bhive_mltf.data.protocols import JetSource

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

    def cut(self, wanted: slice) -> tuple[Part, ...]:
        """The parts of the jets `wanted` (start and stop given) of this batch."""
        if wanted.start == 0 and wanted.stop == len(self):
            return self.parts
        parts, first = [], 0
        for part in self.parts:
            chosen = part.positions[max(wanted.start - first, 0) : max(wanted.stop - first, 0)]
            if len(chosen):
                parts.append(Part(part.window, chosen))
            first += len(part.positions)
        return tuple(parts)

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
class Selection:
    """Which jets of a training set an epoch takes.

    matched : classes of the model if jets in none of them are left out, else None.
    factors : per process, for sampling by weight; None takes every jet.
    """

    source: JetSource
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
    selection : which jets the epochs take.
    batch_size : jets of a global batch.
    shuffle : the order of the epoch; else the stored order.
    drop_last : leave out the last batch when it is incomplete.
    buckets : batches of jets with about as many candidates; only with `shuffle`.
    """

    def __init__(
        self,
        selection: Selection,
        jets: range,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        buckets: Buckets | None = None,
    ) -> None:
        self.selection = selection
        self.jets = jets
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.buckets = buckets
        self._selected: dict[int, int] = {}

    def n_selected(self, epoch: int) -> int:
        """Jets that the epoch takes, those of a dropped last batch included; counted, not estimated."""
        if self.selection.is_everything:
            return len(self.jets)
        # Without sampling all epochs take the same jets.
        which = 0 if self.selection.factors is None else epoch
        if which not in self._selected:
            starts = range(self.jets.start, self.jets.stop, _CHUNK)
            pieces = (slice(start, min(start + _CHUNK, self.jets.stop)) for start in starts)
            self._selected[which] = sum(int(self.selection.mask(piece, epoch).sum()) for piece in pieces)
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
        source, seed, before = self.selection.source, self.selection.seed, 0
        for window in order.windows(self.jets, (seed, epoch) if self.shuffle else None):
            positions = order.window_positions(self.jets, window)
            if not self.selection.is_everything:
                positions = positions[self.selection.mask(positions, epoch)]
            before += len(positions)
            if skip >= len(positions):
                # A window before the first wanted batch is only counted, not put in order.
                skip -= len(positions)
                continue
            if self.shuffle:
                content = source.content_ids[source.index.file[positions]]
                positions = order.shuffled(positions, content, source.index.entry[positions], seed, epoch)
                if self.buckets is not None:
                    key, begun = philox.key(seed, "buckets", epoch), before - len(positions)
                    positions = self.buckets.arrange(positions, begun, self.batch_size, key, window[0])
            yield window, positions[skip:]
            skip = 0
