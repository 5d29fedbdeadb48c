"""A run of jets in memory: columns, candidates jagged; how blocks are cut, joined, padded and gathered.

A candidate whose features are all zero at the end of a jet is padding.
J: jets; S: candidates of one group, summed over the jets; N: candidates kept per jet; F: columns; K: truth labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bhive_mltf.data.schema import GLOBAL, ColumnChoice, Schema

Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True)
class JetBlock:
    """What passes between conversion, shards and loader.

    features : per group float32; `global` [J,F], candidate groups [S,F], the candidates of jet 0 first.
    counts : per candidate group int32 [J], S = counts.sum().
    truth : bool [J,K], in the order of the config's truths.
    process : int16 [J], index into the config's processes.
    weight : float32 [J], probability in [0, 1] of weighted sampling.
    jet_id : int64 [J,2], (index of the source file in the manifest, entry in its tree).
    kinematics : float32 [J,2], (pt, eta), always at full width.
    """

    features: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, NDArray[np.int32]]
    truth: NDArray[np.bool_]
    process: NDArray[np.int16]
    weight: NDArray[np.float32]
    jet_id: NDArray[np.int64]
    kinematics: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.weight)

    def take(self, jets: NDArray[np.int64]) -> JetBlock:
        """The jets at these positions, in this order."""
        return self._rows(
            jets, {name: _take_lists(self.features[name], counts, jets) for name, counts in self.counts.items()}
        )

    def part(self, start: int, stop: int) -> JetBlock:
        """The jets [start, stop), as views."""
        if start == 0 and stop == len(self):
            return self
        lists = {}
        for name, counts in self.counts.items():
            first = int(counts[:start].sum(dtype=np.int64))
            lists[name] = self.features[name][first : first + int(counts[start:stop].sum(dtype=np.int64))]
        return self._rows(slice(start, stop), lists)

    def _rows(self, jets: NDArray[np.int64] | slice, candidates: Mapping[str, NDArray[np.float32]]) -> JetBlock:
        return JetBlock(
            features={
                name: values[jets] if name == GLOBAL else candidates[name] for name, values in self.features.items()
            },
            counts={name: counts[jets] for name, counts in self.counts.items()},
            truth=self.truth[jets],
            process=self.process[jets],
            weight=self.weight[jets],
            jet_id=self.jet_id[jets],
            kinematics=self.kinematics[jets],
        )

    def choose(self, choice: ColumnChoice) -> JetBlock:
        """The chosen columns of a block that has all columns."""
        features = {
            name: self.features[name] if columns is None else self.features[name][:, columns]
            for name, columns in choice.items()
        }
        counts = {name: counts for name, counts in self.counts.items() if name in features}
        return replace(self, features=features, counts=counts)

    @staticmethod
    def concatenate(blocks: Sequence[JetBlock]) -> JetBlock:
        """Blocks of one schema, end to end."""
        if len(blocks) == 1:
            return blocks[0]
        first = blocks[0]
        return JetBlock(
            features={name: np.concatenate([b.features[name] for b in blocks]) for name in first.features},
            counts={name: np.concatenate([b.counts[name] for b in blocks]) for name in first.counts},
            truth=np.concatenate([b.truth for b in blocks]),
            process=np.concatenate([b.process for b in blocks]),
            weight=np.concatenate([b.weight for b in blocks]),
            jet_id=np.concatenate([b.jet_id for b in blocks]),
            kinematics=np.concatenate([b.kinematics for b in blocks]),
        )


def empty_block(schema: Schema) -> JetBlock:
    """A block without jets."""
    return JetBlock(
        features={group.name: np.zeros((0, len(group.columns)), np.float32) for group in schema.groups},
        counts={group.name: np.zeros(0, np.int32) for group in schema.candidate_groups},
        truth=np.zeros((0, len(schema.truths)), np.bool_),
        process=np.zeros(0, np.int16),
        weight=np.zeros(0, np.float32),
        jet_id=np.zeros((0, 2), np.int64),
        kinematics=np.zeros((0, 2), np.float32),
    )


def regroup(blocks: Iterator[JetBlock], sizes: Iterator[int]) -> Iterator[JetBlock]:
    """The same jets in the same order, cut anew into blocks of the given `sizes`.

    The sizes have to add up to the number of jets.
    """
    pending: list[JetBlock] = []
    held = 0
    for size in sizes:
        while held < size:
            block = next(blocks)
            pending.append(block)
            held += len(block)
        joined = JetBlock.concatenate(pending)
        yield joined.part(0, size)
        pending = [joined.part(size, held)] if held > size else []
        held -= size


def first_rows(offsets: NDArray[np.int64], jets: NDArray[np.int64], length: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows of the first `length` candidates of some jets.

    Parameters
    ----------
    offsets : [J+1], where each jet's candidates begin in a flat array.
    jets : [J'], the jets wanted.

    Returns
    -------
    rows : int64 [S']
    counts : int32 [J']
    """
    starts = offsets[jets]
    counts = np.minimum(offsets[jets + 1] - starts, length)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total), counts.astype(np.int32)


def strip(values: NDArray[Kind], counts: NDArray[np.int32]) -> tuple[NDArray[Kind], NDArray[np.int32]]:
    """Features [S,F] and counts [J] without the all-zero candidates at the end of each jet."""
    ends = np.cumsum(counts, dtype=np.int64)
    if (values[ends[counts > 0] - 1] != 0).any(axis=1).all():
        return values, counts
    filled = (values != 0).any(axis=1)
    within = np.arange(len(values)) - np.repeat(ends - counts, counts) + 1
    kept = np.zeros_like(counts)
    some = counts > 0
    kept[some] = np.maximum.reduceat(np.where(filled, within, 0), (ends - counts)[some])
    keep = within <= np.repeat(kept, counts)
    return values[keep], kept


def pad(values: NDArray[Kind], counts: NDArray[np.int32], length: int) -> NDArray[Kind]:
    """Candidates [S,F] as [J,N,F], zero where a jet has fewer than N."""
    padded = np.zeros((len(counts), length, values.shape[1]), values.dtype)
    padded[np.arange(length) < counts[:, None]] = values
    return padded


def unpad(padded: NDArray[Kind]) -> tuple[NDArray[Kind], NDArray[np.int32]]:
    """Candidates [S,F] and counts [J] of a padded array [J,N,F]."""
    length = padded.shape[1]
    filled = (padded != 0).any(axis=2)
    counts = np.where(filled.any(axis=1), length - np.argmax(filled[:, ::-1], axis=1), 0).astype(np.int32)
    return padded[np.arange(length) < counts[:, None]], counts


def _take_lists(values: NDArray[Kind], counts: NDArray[np.int32], jets: NDArray[np.int64]) -> NDArray[Kind]:
    # The candidates of a jet lie next to each other: to Arrow they are one string of bytes, copied in one go.
    width = values.shape[1] * values.itemsize
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, dtype=np.int64, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets * width), pa.py_buffer(np.ascontiguousarray(values))]
    strings = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(counts), buffers)
    data = strings.take(pa.array(jets)).buffers()[2]
    return np.frombuffer(data if data is not None else b"", values.dtype).reshape(-1, values.shape[1])
