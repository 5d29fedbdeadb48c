"""From a window to the padded tensors of a batch.

B: jets of this rank; N: candidates, padding included; F: columns.

A batch lies in one buffer, so that processes pass it on by its number and pinning it is one operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bhive_mltf.data.loader.jagged import Chosen, Scratch, assemble
from bhive_mltf.data.loader.windows import WindowTable
from bhive_mltf.data.protocols import JetIndexLike
from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.interface import Batch, GroupBatch, ModelInputs

_ALIGNMENT = 64
_JET_COLUMNS: Mapping[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "position": (np.int64, ()),
    "target": (np.int64, ()),
    "weight": (np.float32, ()),
    "jet_id": (np.int64, (2,)),
    "process": (np.int64, ()),
    "kinematics": (np.float32, (2,)),
}
_BATCH_COLUMNS = tuple(name for name in _JET_COLUMNS if name != "position")
# Numbers of candidates are stored in 16 bits.
_STEPS = np.arange(2**16, dtype=np.uint16)


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


class Place(NamedTuple):
    """Where one array lies in the buffer of a batch."""

    shape: tuple[int, ...]
    dtype: type[np.generic]
    offset: int

    @property
    def stop(self) -> int:
        """Byte behind the last one."""
        return self.offset + prod(self.shape) * np.dtype(self.dtype).itemsize

    def view(self, buffer: NDArray[np.uint8]) -> NDArray[Any]:
        """The array."""
        return np.ndarray(self.shape, self.dtype, buffer, self.offset)


@dataclass(frozen=True)
class BatchShape:
    """What decides where the arrays of a batch lie in its buffer.

    n_jets : of this rank.
    lengths : N per group of `inputs`.
    global_size : jets of the global batch.
    """

    n_jets: int
    lengths: tuple[int, ...]
    global_size: int

    def places(self, inputs: ModelInputs) -> Mapping[str, Place]:
        """Columns per jet; of each group `name`, `name/mask` and, if asked for, `name/vectors`; aligned."""
        return _places(inputs, self.n_jets, self.lengths)


@lru_cache(256)
def _places(inputs: ModelInputs, n_jets: int, lengths: tuple[int, ...]) -> Mapping[str, Place]:
    wanted = {name: (kind, (n_jets, *shape)) for name, (kind, shape) in _JET_COLUMNS.items()}
    for group, length in zip(inputs.groups, lengths, strict=True):
        wanted[group.name] = np.float32, (n_jets, length, len(group.columns))
        wanted[f"{group.name}/mask"] = np.bool_, (n_jets, length)
        if group.four_vectors:
            wanted[f"{group.name}/vectors"] = np.float32, (n_jets, length, 4)
    places: dict[str, Place] = {}
    end = 0
    for name, (kind, shape) in wanted.items():
        places[name] = Place(shape, kind, -(-end // _ALIGNMENT) * _ALIGNMENT)
        end = places[name].stop
    return places


@lru_cache(256)
def _copied_places(inputs: ModelInputs, n_jets: int, lengths: tuple[int, ...]) -> tuple[Mapping[str, Place], int, int]:
    """Where the columns per jet of a batch lie in a copy of a part of its buffer, and the ends of that part."""
    places = _places(inputs, n_jets, lengths)
    start, stop = places["target"].offset, places["kinematics"].stop
    return {name: places[name]._replace(offset=places[name].offset - start) for name in _BATCH_COLUMNS}, start, stop


def buffer_bytes(inputs: ModelInputs, n_jets: int) -> int:
    """Bytes that hold any batch of up to `n_jets` jets."""
    shape = BatchShape(n_jets, tuple(group.length for group in inputs.groups), n_jets)
    return max(place.stop for place in shape.places(inputs).values())


class Collator:
    """Writes jets of a window into the buffer of a batch."""

    def __init__(self, inputs: ModelInputs) -> None:
        self._inputs = inputs
        self._scratch = Scratch()

    def fill(
        self, buffer: NDArray[np.uint8], shape: BatchShape, first: int, table: WindowTable, jets: NDArray[np.int64]
    ) -> None:
        """Write the jets `jets` (rows of the window) to the jets of the batch from `first` on."""
        places = shape.places(self._inputs)
        here = slice(first, first + len(jets))

        def out(name: str) -> NDArray[Any]:
            return places[name].view(buffer)[here]

        for name, values in table.jets.items():
            if name == GLOBAL:
                out(GLOBAL)[:, 0] = values[jets]
                out(f"{GLOBAL}/mask")[:] = True
            else:
                values.take(jets, axis=0, out=out(name), mode="clip")
        for name in table.groups:
            arrays = {key: out(key) for key in (name, f"{name}/mask", f"{name}/vectors") if key in places}
            self._fill_group(name, arrays, table, jets)

    def _fill_group(
        self, name: str, out: Mapping[str, NDArray[Any]], table: WindowTable, jets: NDArray[np.int64]
    ) -> None:
        candidates = table.groups[name]
        recipe, counts = candidates.recipe, candidates.counts[jets]
        where = None if table.where is None else table.where[jets]
        chosen = Chosen(table.memory, where, [begins[jets] for begins in candidates.begins], counts)
        mask = out[f"{name}/mask"]
        np.less(_STEPS[: mask.shape[1]], counts.astype(np.uint16)[:, None], out=mask)
        for target, picked in ((name, recipe.features), (f"{name}/vectors", recipe.vectors)):
            if picked:
                assemble(chosen, recipe, picked, out[target], self._scratch)


def unpack(buffer: NDArray[np.uint8], shape: BatchShape, inputs: ModelInputs, *, pin_memory: bool = False) -> Batch:
    """The batch in a buffer; the tensors of its groups keep the array `buffer` alive.

    Columns per jet are copied: who keeps the targets of an epoch must not keep all of its features.
    """
    places = shape.places(inputs)
    copied, start, stop = _copied_places(inputs, shape.n_jets, shape.lengths)
    jets = buffer[start:stop].copy()
    if pin_memory:
        jets = torch.from_numpy(jets).pin_memory().numpy()

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(places[name].view(buffer))

    groups = {
        group.name: GroupBatch(
            features=tensor(group.name),
            mask=tensor(f"{group.name}/mask"),
            columns=group.columns,
            four_vectors=tensor(f"{group.name}/vectors") if group.four_vectors else None,
        )
        for group in inputs.groups
    }
    columns = {name: torch.from_numpy(place.view(jets)) for name, place in copied.items()}
    return Batch(groups=groups, global_size=shape.global_size, **columns)
