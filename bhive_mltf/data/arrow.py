"""Jets as Arrow record batches: candidates jagged, all columns of a group next to each other.

Columns of a batch: file, entry, process, weight, kinematics (list of pt, eta), truth (list of 0 or 1 per label),
global (list of F numbers) and per candidate group a list of candidates, each a list of F numbers. Buffers are not
compressed: a reader maps the file and takes them as they lie there.
"""

from __future__ import annotations

import bisect
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.columns import Selection
from bhive_mltf.data.schema import GLOBAL, Schema
from bhive_mltf.errors import CorruptFileError

FORMAT = b"bhive_mltf.jets.1"


def encode(block: JetBlock, schema: Schema, half: bool = False) -> pa.RecordBatch:
    """A block as one record batch; with `half`, features of candidates are stored as float16."""
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
        else:
            offsets = np.concatenate([[0], np.cumsum(block.counts[group.name])]).astype(np.int32)
            numbers = _fixed(values.astype(np.float16) if half else values)
            arrays[group.name] = pa.ListArray.from_arrays(pa.array(offsets), numbers)
    metadata = {b"format": FORMAT, b"schema": json.dumps(asdict(schema), sort_keys=True).encode()}
    batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    return batch.replace_schema_metadata(metadata)


def _fixed(values: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def decode(batch: pa.RecordBatch, selection: Selection) -> JetBlock:
    """A record batch, or a slice of one, as a block; what is stored at the width of the block is not copied."""
    features, counts = {}, {}
    for name, width, columns in selection.groups:
        if name == GLOBAL:
            values = _matrix(batch.column(name), width)
        else:
            lists = batch.column(name)
            offsets = lists.offsets.to_numpy()
            # `values` of a slice is that of the whole: the offsets say where the slice lies.
            values = _matrix(lists.values, width)[offsets[0] : offsets[-1]]
            counts[name] = np.diff(offsets)
        if columns is not None:
            values = values[:, columns]
        features[name] = values.astype(np.float32, copy=False)
    jet_id = np.empty((len(batch), 2), np.int64)
    jet_id[:, 0] = batch.column("file").to_numpy()
    jet_id[:, 1] = batch.column("entry").to_numpy()
    return JetBlock(
        features=features,
        counts=counts,
        truth=_matrix(batch.column("truth"), selection.n_truths).view(np.bool_),
        process=batch.column("process").to_numpy(),
        weight=batch.column("weight").to_numpy(),
        jet_id=jet_id,
        kinematics=_matrix(batch.column("kinematics"), 2),
    )


def _matrix(array: pa.FixedSizeListArray, width: int) -> NDArray[Any]:
    values: NDArray[Any] = array.flatten().to_numpy()
    return values.reshape(-1, width)


class ArrowShardWriter:
    """Writes blocks to an Arrow IPC file, one record batch each."""

    def __init__(self, path: Path, schema: Schema, half: bool = False) -> None:
        self._path = path
        self._schema = schema
        self._half = half
        self._sink: Any = None
        self._writer: Any = None

    def append(self, block: JetBlock) -> None:
        """Add a record batch."""
        self.write(encode(block, self._schema, self._half))

    def write(self, batch: pa.RecordBatch, metadata: dict[str, str] | None = None) -> None:
        """Add a record batch as it is, with metadata of its own."""
        if self._writer is None:
            self._sink = pa.OSFile(str(self._path), "wb")
            self._writer = pa.ipc.new_file(self._sink, batch.schema)
        self._writer.write_batch(batch, custom_metadata=metadata)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._writer = None


class ArrowShard:
    """One shard, memory-mapped; jets by their row."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._schema = schema
        self._batches, _ = read_batches(path)
        self._edges = list(itertools.accumulate((len(batch) for batch in self._batches), initial=0))

    def read(self, start: int, stop: int, selection: Selection) -> JetBlock:
        """The jets in rows [start, stop)."""
        pieces: list[JetBlock] = []
        first = max(0, bisect.bisect_right(self._edges, start) - 1)
        for number in range(first, len(self._batches)):
            low, high = self._edges[number], self._edges[number + 1]
            if low >= stop and pieces:
                break
            begin = max(start, low) - low
            end = max(begin, min(stop, high) - low)
            pieces.append(decode(self._batches[number].slice(begin, end - begin), selection))
        return JetBlock.concatenate(pieces)


def read_batches(path: Path) -> tuple[list[pa.RecordBatch], dict[str, str]]:
    """All record batches of a file, mapped, and the metadata of the last one.

    Raises
    ------
    CorruptFileError
        Not a whole Arrow file of jets.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if (reader.schema.metadata or {}).get(b"format") != FORMAT:
            raise CorruptFileError(f"'{path}' holds no jets of this format: build the training set again")
        batches = [reader.get_batch_with_custom_metadata(i) for i in range(reader.num_record_batches)]
    except (OSError, pa.ArrowException) as error:
        raise CorruptFileError(
            f"'{path}' cannot be read as an Arrow file ({error}): build the training set again"
        ) from error
    last = batches[-1][1] if batches else None
    metadata = {key.decode(): value.decode() for key, value in last.items()} if last else {}
    return [batch for batch, _ in batches], metadata
