"""Jets of a block in another order, with one memory copy per jet instead of one per candidate."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.schema import GLOBAL


def reorder(block: JetBlock, jets: NDArray[np.int64]) -> JetBlock:
    """The jets at these positions, in this order; the same as `block.take(jets)`."""
    narrow = dataclasses.replace(block, features={}, counts={}).take(jets)
    features, counts = {}, {}
    for name, values in block.features.items():
        if name == GLOBAL:
            features[name] = values[jets]
        else:
            features[name] = _lists(values, block.counts[name], jets)
            counts[name] = block.counts[name][jets]
    return dataclasses.replace(narrow, features=features, counts=counts)


def _lists(values: NDArray[Any], counts: NDArray[np.int32], jets: NDArray[np.int64]) -> NDArray[Any]:
    # The candidates of a jet lie next to each other: to Arrow they are one string of bytes.
    width = values.shape[1] * values.itemsize
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, dtype=np.int64, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets * width), pa.py_buffer(np.ascontiguousarray(values))]
    strings = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(counts), buffers)
    data = strings.take(pa.array(jets)).buffers()[2]
    return np.frombuffer(data if data is not None else b"", values.dtype).reshape(-1, values.shape[1])
