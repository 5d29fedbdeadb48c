"""Jets of several blocks as one block in another order, with one memory copy per jet instead of one per candidate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.layouts.column_planes import Plane
from bhive_mltf.data.loader import jagged
from bhive_mltf.data.loader.jagged import Chosen, Memory
from bhive_mltf.data.schema import GLOBAL


def gather(blocks: Sequence[JetBlock], jets: NDArray[np.int64]) -> JetBlock:
    """Jets of the blocks, counted through all of them, in this order: `JetBlock.concatenate(blocks).take(jets)`."""
    features, counts = {}, {}
    for name in blocks[0].features:
        pieces = [block.features[name] for block in blocks]
        if name == GLOBAL:
            features[name] = np.concatenate(pieces)[jets]
        else:
            numbers = [block.counts[name] for block in blocks]
            features[name] = _candidates(pieces, numbers, jets)
            counts[name] = np.concatenate(numbers)[jets]
    narrow = JetBlock.concatenate([dataclasses.replace(block, features={}, counts={}) for block in blocks]).take(jets)
    return dataclasses.replace(narrow, features=features, counts=counts)


def _candidates(
    pieces: Sequence[NDArray[Any]], counts: Sequence[NDArray[np.int32]], jets: NDArray[np.int64]
) -> NDArray[Any]:
    """Candidates [S,W] of some jets, of pieces [S,W] with so many candidates per jet."""
    if jagged.PAD_JETS is None:
        return _lists(np.concatenate(pieces), np.concatenate(counts), jets)
    width, kind = pieces[0].shape[1], pieces[0].dtype
    begins = np.concatenate([np.cumsum(own, dtype=np.int64) - own for own in counts]) * (width * kind.itemsize)
    where = np.repeat(np.arange(len(counts)), [len(own) for own in counts])
    taken = np.concatenate(counts)[jets].astype(np.int64)
    memory = Memory([np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data for piece in pieces])
    out = np.empty((int(taken.sum()), width), kind)
    plane = Plane("of a staged file", tuple(range(width)))
    jagged.copy_candidates(Chosen(memory, where[jets], [begins[jets]], taken), 0, plane, out)
    return out


def _lists(values: NDArray[Any], counts: NDArray[np.int32], jets: NDArray[np.int64]) -> NDArray[Any]:
    # The candidates of a jet lie next to each other: to Arrow they are one string of bytes.
    width = values.shape[1] * values.itemsize
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, dtype=np.int64, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets * width), pa.py_buffer(np.ascontiguousarray(values))]
    strings = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(counts), buffers)
    data = strings.take(pa.array(jets)).buffers()[2]
    return np.frombuffer(data if data is not None else b"", values.dtype).reshape(-1, values.shape[1])
