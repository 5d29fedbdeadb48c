"""From jagged jets in memory to the padded tensors of a batch.

B: jets of this rank; N: candidates, padding included; F: columns; S: candidates in memory.

A batch lies in one buffer, so that passing it between processes or pinning it is one operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bhive_mltf.data.batch import Batch, GroupBatch
from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.data.source import JetIndexLike
from bhive_mltf.models.inputs import GroupInput, ModelInputs

_ALIGNMENT = 64


def read_columns(inputs: ModelInputs) -> dict[str, tuple[str, ...]]:
    """Columns to read per group: the model's, then those that only its four-vectors need."""
    return {
        group.name: (*group.columns, *(c for c in dict.fromkeys(group.four_vectors) if c not in group.columns))
        for group in inputs.groups
    }


def padded_lengths(index: JetIndexLike, positions: NDArray[np.int64], inputs: ModelInputs) -> dict[str, int]:
    """N per group for the global batch at these stored positions.

    `longest` is the longest jet of the batch, at least 1 and at most the group's length.
    """
    lengths = {}
    for group in inputs.groups:
        lengths[group.name] = group.length
        if group.name != GLOBAL and inputs.padding == "longest":
            longest = int(index.counts(group.name)[positions].max(initial=1))
            lengths[group.name] = max(1, min(longest, group.length))
    return lengths


@dataclass(frozen=True)
class ArenaGroup:
    """One group of an arena; the last row of the flat arrays is zero, padding points there.

    features : float32 [S+1,F].
    four_vectors : float32 [S+1,4] or None.
    starts, counts : int64 [J].
    """

    features: NDArray[np.float32]
    four_vectors: NDArray[np.float32] | None
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Arena:
    """Jets in memory, arranged for gathering."""

    groups: Mapping[str, ArenaGroup]
    jet_id: NDArray[np.int64]
    process: NDArray[np.int16]
    kinematics: NDArray[np.float32]

    @classmethod
    def of(cls, blocks: Sequence[JetBlock], inputs: ModelInputs) -> Arena:
        """The arena of blocks that were read with `read_columns(inputs)`, end to end."""
        columns = read_columns(inputs)
        return cls(
            groups={group.name: _arena_group(blocks, group, columns[group.name]) for group in inputs.groups},
            jet_id=np.concatenate([block.jet_id for block in blocks]),
            process=np.concatenate([block.process for block in blocks]),
            kinematics=np.concatenate([block.kinematics for block in blocks]),
        )


def _arena_group(blocks: Sequence[JetBlock], group: GroupInput, columns: tuple[str, ...]) -> ArenaGroup:
    counts = np.concatenate([_counts(block, group.name) for block in blocks])
    rows = [block.features[group.name] for block in blocks]
    vectors = [columns.index(column) for column in group.four_vectors]
    return ArenaGroup(
        features=_join(rows, slice(len(group.columns)), len(group.columns)),
        four_vectors=_join(rows, vectors, 4) if vectors else None,
        starts=np.cumsum(counts) - counts,
        counts=counts,
    )


def _counts(block: JetBlock, group: str) -> NDArray[np.int64]:
    return np.ones(len(block), np.int64) if group == GLOBAL else block.counts[group].astype(np.int64)


def _join(rows: Sequence[NDArray[np.float32]], columns: slice | list[int], width: int) -> NDArray[np.float32]:
    """The chosen columns of all rows, and a row of zeros."""
    joined = np.empty((sum(map(len, rows)) + 1, width), np.float32)
    first = 0
    for piece in rows:
        joined[first : first + len(piece)] = piece[:, columns]
        first += len(piece)
    joined[-1] = 0
    return joined


@dataclass(frozen=True)
class Packet:
    """A batch on its way from a worker.

    buffer : uint8, the groups one after another; see `_places`.
    lengths : N per group.
    columns : the columns per jet by name, as in Batch; arrays, since a small tensor would hold a file
        descriptor of its own for as long as somebody keeps it.
    """

    buffer: Tensor
    lengths: Mapping[str, int]
    columns: Mapping[str, NDArray[Any] | Tensor]
    global_size: int

    def pin_memory(self) -> Packet:
        """The same packet in pinned memory; torch's DataLoader calls this."""
        columns = {name: torch.as_tensor(values).pin_memory() for name, values in self.columns.items()}
        return replace(self, buffer=self.buffer.pin_memory(), columns=columns)

    def unpack(self, inputs: ModelInputs) -> Batch:
        """The batch, without a copy."""
        columns = {name: torch.as_tensor(values) for name, values in self.columns.items()}
        n_jets = len(columns["target"])
        groups = _group_views(self.buffer, inputs, self.lengths, n_jets)
        return Batch(groups=groups, global_size=self.global_size, **columns)


@dataclass(frozen=True)
class _Place:
    """Where one tensor lies in the buffer of a packet."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def stop(self) -> int:
        return self.offset + prod(self.shape) * self.dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        return buffer[self.offset : self.stop].view(self.dtype).view(self.shape)


def _places(inputs: ModelInputs, lengths: Mapping[str, int], n_jets: int) -> list[_Place]:
    """Features, mask and, if asked for, four-vectors of each group, aligned."""
    places: list[_Place] = []
    for group in inputs.groups:
        rows = (n_jets, lengths[group.name])
        wanted = [(torch.float32, (*rows, len(group.columns))), (torch.bool, rows)]
        if group.four_vectors:
            wanted.append((torch.float32, (*rows, 4)))
        for dtype, shape in wanted:
            end = places[-1].stop if places else 0
            places.append(_Place(dtype, shape, -(-end // _ALIGNMENT) * _ALIGNMENT))
    return places


def _group_views(buffer: Tensor, inputs: ModelInputs, lengths: Mapping[str, int], n_jets: int) -> dict[str, GroupBatch]:
    views = iter([place.view(buffer) for place in _places(inputs, lengths, n_jets)])
    return {
        group.name: GroupBatch(next(views), next(views), group.columns, next(views) if group.four_vectors else None)
        for group in inputs.groups
    }


def collate(
    parts: Iterable[tuple[Arena, NDArray[np.int64]]],
    inputs: ModelInputs,
    lengths: Mapping[str, int],
    *,
    target: NDArray[np.int64],
    weight: NDArray[np.float32],
    global_size: int,
) -> Packet:
    """Gather jets into one batch.

    Parameters
    ----------
    parts : (arena, rows in it), one after another; an arena may go once the next one is asked for.
    lengths : N per group, from `padded_lengths`; longer jets are cut.
    target, weight : [B], of all parts together.
    """
    n_jets = len(target)
    places = _places(inputs, lengths, n_jets)
    # Every byte but the gaps between tensors is written below.
    buffer = torch.empty(places[-1].stop if places else 0, dtype=torch.uint8)
    groups = _group_views(buffer, inputs, lengths, n_jets)
    columns: dict[str, NDArray[Any]] = {
        "target": target,
        "weight": weight,
        "jet_id": np.empty((n_jets, 2), np.int64),
        "process": np.empty(n_jets, np.int64),
        "kinematics": np.empty((n_jets, 2), np.float32),
    }
    first = 0
    for arena, rows in parts:
        here = slice(first, first + len(rows))
        for name, group in groups.items():
            _fill(group, here, arena.groups[name], rows)
        columns["jet_id"][here] = arena.jet_id[rows]
        columns["process"][here] = arena.process[rows]
        columns["kinematics"][here] = arena.kinematics[rows]
        first = here.stop
    return Packet(buffer, dict(lengths), columns, global_size)


def _fill(group: GroupBatch, here: slice, arena: ArenaGroup, rows: NDArray[np.int64]) -> None:
    """Write the jets `rows` of the arena to the jets `here` of the batch."""
    mask = group.mask.numpy()[here]
    steps = np.arange(mask.shape[1])
    np.less(steps, arena.counts[rows, None], out=mask)
    zero_row = len(arena.features) - 1
    taken = np.where(mask, arena.starts[rows, None] + steps, zero_row)
    # mode="clip" spares numpy a buffered copy of the output; every index is in range.
    np.take(arena.features, taken, axis=0, out=group.features.numpy()[here], mode="clip")
    if group.four_vectors is not None and arena.four_vectors is not None:
        np.take(arena.four_vectors, taken, axis=0, out=group.four_vectors.numpy()[here], mode="clip")
