"""Jets as Arrow record batches: candidates jagged, some columns of a group next to each other.

Columns of a batch: file, entry, process, weight, kinematics (list of pt, eta), truth (list of 0 or 1 per label), global
(list of F numbers) and per candidate group one or more lists of candidates, each a list of F numbers (`storage`). Each
batch carries the XXH3-64 of its columns. Without compression a reader takes the numbers as they lie in the mapped file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock, empty_block
from bhive_mltf.data.layouts.column_planes import Planes, to_json
from bhive_mltf.data.schema import GLOBAL, Schema

FORMATS = (b"bhive_mltf.jets.1", b"bhive_mltf.jets.2")
CHECKSUMS = "xxh3"
_NAMES = {"halffloat": "float16", "float": "float32"}


def encode(block: JetBlock, schema: Schema, planes: Planes, compression: str) -> pa.RecordBatch:
    """A block as one record batch, with a note on how it will be compressed."""
    arrays = {
        "file": pa.array(block.jet_id[:, 0].astype(np.uint32)),
        "entry": pa.array(np.ascontiguousarray(block.jet_id[:, 1])),
        "process": pa.array(block.process),
        "weight": pa.array(block.weight),
        "kinematics": _fixed(block.kinematics),
        "truth": _fixed(block.truth.view(np.uint8)),
    }
    for group in schema.groups:
        values = block.features[group.name]
        if group.name == GLOBAL:
            arrays[group.name] = _fixed(values)
            continue
        offsets = pa.array(np.concatenate([[0], np.cumsum(block.counts[group.name])]).astype(np.int32))
        for plane in planes[group.name]:
            whole = plane.positions == tuple(range(values.shape[1]))
            numbers = values if whole else np.take(values, plane.positions, axis=1)
            arrays[plane.field] = pa.ListArray.from_arrays(offsets, _fixed(numbers.astype(plane.type, copy=False)))
    metadata = {b"format": FORMATS[-1], b"schema": json.dumps(asdict(schema), sort_keys=True).encode()}
    metadata |= {b"planes": to_json(planes).encode(), b"compression": compression.encode()}
    batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    return batch.replace_schema_metadata(metadata)


def _fixed(values: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def numbers(column: pa.Array) -> tuple[NDArray[Any] | None, NDArray[Any]]:
    """Offsets of a column of a whole batch (None if it has no lists of varying length) and its numbers, flat, unmoved.

    Raises
    ------
    ValueError, TypeError : missing values or another type, which no column has that was written here.
    """
    *_, data = column.buffers()
    offsets = None
    if column.null_count:
        raise ValueError("missing values")
    if pa.types.is_list(column.type):
        offsets = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1)
        column = column.values
    n, kind = len(column), column.type
    if pa.types.is_fixed_size_list(kind):
        n, kind = n * kind.list_size, kind.value_type
    # Not `to_numpy` and not `to_pandas_dtype`: they import pandas.
    dtype = np.dtype(_NAMES.get(str(kind), str(kind)))
    return offsets, np.frombuffer(data, dtype, n) if n else np.empty(0, dtype)


def checksum(column: pa.Array) -> str:
    """XXH3-64 of a column of a whole batch, as 16 hexadecimal digits."""
    state = xxhash.xxh3_64()
    for values in numbers(column):
        if values is not None:
            state.update(np.ascontiguousarray(values).data)
    return str(state.hexdigest())


class ArrowShardWriter:
    """Writes blocks to an Arrow IPC file, one record batch each.

    Parameters
    ----------
    compression : "none", "lz4" or "zstd".
    """

    def __init__(self, path: Path, schema: Schema, planes: Planes, compression: str = "none") -> None:
        self._schema = schema
        self._planes = planes
        self._compression = compression
        codec = None if compression == "none" else pa.Codec(compression, 1 if compression == "zstd" else None)
        options = pa.ipc.IpcWriteOptions(compression=codec, use_threads=False)
        empty = encode(empty_block(schema), schema, planes, compression)
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, empty.schema, options=options)

    def append(self, block: JetBlock) -> None:
        """Add a record batch."""
        batch = encode(block, self._schema, self._planes, self._compression)
        sums = {name: checksum(batch.column(name)) for name in batch.schema.names}
        self._writer.write_batch(batch, custom_metadata={CHECKSUMS: json.dumps(sums)})

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        self._sink.close()
