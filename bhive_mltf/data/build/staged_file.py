"""Staged files: the accepted jets of a group of source files, as sorted record batches of an Arrow IPC file.

The columns are those of an Arrow shard and `key`, the key of the global order, by which each batch is sorted: any range
of keys is a contiguous run of each batch, so that a merge of any size needs little memory. A batch carries the XXH3-64
of its columns and the number of its source among the files of the job. The last batch is empty and carries the record,
without which the file is not readable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from bhive_mltf.data.block import JetBlock, empty_block
from bhive_mltf.data.layouts.arrow_format import checksum, encode, numbers
from bhive_mltf.data.layouts.column_planes import Plane
from bhive_mltf.data.layouts.mapped_arrow import MappedArrow
from bhive_mltf.data.manifest import Accounting, SkippedFile, Source
from bhive_mltf.data.schema import GLOBAL, Schema
from bhive_mltf.errors import CorruptFileError, DataError
from bhive_mltf.files import mapping

_SOURCE, _CHECKSUMS, _RECORD = b"source", b"xxh3", b"record"
_NO_KEYS: NDArray[np.uint64] = np.zeros(0, np.uint64)
_AGAIN = "remove it and convert again"
_DAMAGED = (ValueError, TypeError, KeyError, pa.ArrowException, ValidationError)


@dataclass(frozen=True)
class StagedRecord:
    """What a staged file was made from.

    sources : files read.
    skipped : files left out.
    accounting : jets of `sources`.
    seed : of the keys.
    config_digest : `dataset_digest` of the config.
    lost : column -> jets left out for a number in it that is not finite, per truth label and, last, in all; "" counts
        each jet once.
    """

    sources: tuple[Source, ...]
    skipped: tuple[SkippedFile, ...]
    accounting: Accounting
    seed: int
    config_digest: str
    lost: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def added_lost(parts: Iterable[Mapping[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    """The sum of several `lost` of records."""
    total: dict[str, tuple[int, ...]] = {}
    for part in parts:
        for name, jets in part.items():
            total[name] = tuple(map(sum, zip(total.get(name, (0,) * len(jets)), jets, strict=True)))
    return total


_ADAPTER: TypeAdapter[tuple[StagedRecord, tuple[int, ...]]] = TypeAdapter(tuple[StagedRecord, tuple[int, ...]])


class StagedWriter:
    """Writes a staged file; without `close` it is not readable as one."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._schema = schema
        self._planes = {g.name: (Plane(g.name, tuple(range(len(g.columns)))),) for g in schema.candidate_groups}
        self._empty = self._batch(empty_block(schema), _NO_KEYS)
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(
            self._sink, self._empty.schema, options=pa.ipc.IpcWriteOptions(use_threads=False)
        )

    def _batch(self, block: JetBlock, keys: NDArray[np.uint64]) -> pa.RecordBatch:
        return encode(block, self._schema, self._planes, "none").append_column("key", pa.array(keys))

    def append(self, block: JetBlock, keys: NDArray[np.uint64], number: int) -> None:
        """Add jets of the source with this number, which stand in the order of their keys, uint64 [J]."""
        batch = self._batch(block, keys)
        sums = {name: checksum(batch.column(name)) for name in batch.schema.names}
        self._writer.write_batch(batch, {_SOURCE: str(number), _CHECKSUMS: json.dumps(sums)})

    def copy(self, path: Path, kept: Sequence[int]) -> None:
        """Add the batches of the sources `kept` of another file, which this class wrote."""
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            for i in range(reader.num_record_batches):
                batch, notes = reader.get_batch_with_custom_metadata(i)
                if notes is not None and _SOURCE in notes and int(notes[_SOURCE]) in kept:
                    self._writer.write_batch(batch, notes)

    def close(self, record: StagedRecord | None, kept: Sequence[int]) -> None:
        """Finish the file; with a record, of the sources with the numbers `kept`, it is readable."""
        if record is not None:
            text = json.dumps([dataclasses.asdict(record), list(kept)], sort_keys=True)
            self._writer.write_batch(self._empty, {_RECORD: text})
        self._writer.close()
        self._sink.close()

    def abandon(self) -> None:
        """Release the file as it is; nothing happens after `close`."""
        if not self._sink.closed:
            # The end of a writer writes what is left: to a disk that may be full.
            with contextlib.suppress(OSError):
                self._writer.close()
            with contextlib.suppress(OSError):
                self._sink.close()


@dataclass(frozen=True)
class _Chunk:
    """A batch: number in the file, position of its source in the record, checksums, columns as offsets and numbers."""

    batch: int
    source: int
    sums: Mapping[str, str]
    columns: Mapping[str, tuple[NDArray[Any] | None, NDArray[Any]]]


class StagedFile:
    """A staged file, memory-mapped.

    record : what it was made from.
    keys : per chunk, uint64 [J].
    bytes : of all chunks.

    Raises
    ------
    CorruptFileError
        Not a whole staged file.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self._schema = schema
        self._chunks: list[_Chunk] = []
        self.bytes = 0
        try:
            self._file = MappedArrow(path, _AGAIN)
            *all_notes, last = [notes for _, notes in self._file.survey(0)]
            self.record, kept = _ADAPTER.validate_json(last[_RECORD])
            for i, notes in enumerate(all_notes):
                if int(notes[_SOURCE]) in kept:
                    # Once, not per read: a merge reads small pieces of all chunks again and again.
                    batch = self._file.batch(i, ())
                    columns = {name: numbers(batch.column(name)) for name in batch.schema.names}
                    sums = json.loads(notes[_CHECKSUMS])
                    self._chunks.append(_Chunk(i, kept.index(int(notes[_SOURCE])), sums, columns))
                    self.bytes += batch.get_total_buffer_size()
        except DataError:
            raise
        except OSError as error:
            raise mapping.cannot_read(path, error, _AGAIN) from error
        except _DAMAGED as error:
            raise CorruptFileError(f"'{path}' is not a whole staged file: {_AGAIN}") from error
        self.keys: list[NDArray[np.uint64]] = [chunk.columns["key"][1] for chunk in self._chunks]

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self._chunks)

    def verify(self) -> None:
        """Hold all chunks against their checksums.

        Each is read before it is touched, so that a block that the disk refuses is an error and not a signal.

        Raises
        ------
        CorruptFileError
            They differ, or the file cannot be read.
        """
        try:
            for chunk in self._chunks:
                batch = self._file.batch(chunk.batch, chunk.columns)
                if chunk.sums != {name: checksum(batch.column(name)) for name in chunk.columns}:
                    raise ValueError("other checksums")
        except DataError:
            raise
        except OSError as error:
            raise mapping.cannot_read(self.path, error, _AGAIN) from error
        except _DAMAGED as error:
            raise CorruptFileError(f"the staged file '{self.path}' is damaged ({error}): {_AGAIN}") from error

    def read(self, chunk: int, start: int, stop: int) -> JetBlock:
        """The jets [start, stop) of a chunk, in the order of their keys; large arrays are views of the file."""
        place = self._chunks[chunk]
        features, counts = {}, {}
        for group in self._schema.groups:
            offsets, values = place.columns[group.name]
            values = values.reshape(-1, len(group.columns))
            if offsets is None:
                features[GLOBAL] = values[start:stop]
            else:
                edges = offsets[start : stop + 1]
                features[group.name] = values[edges[0] : edges[-1]]
                counts[group.name] = edges[1:] - edges[:-1]
        jet_id = np.empty((stop - start, 2), np.int64)
        jet_id[:, 0] = place.source
        jet_id[:, 1] = place.columns["entry"][1][start:stop]
        kinematics, truth = self.labels(chunk)
        return JetBlock(
            features=features,
            counts=counts,
            truth=truth[start:stop],
            process=place.columns["process"][1][start:stop],
            weight=place.columns["weight"][1][start:stop],
            jet_id=jet_id,
            kinematics=kinematics[start:stop],
        )

    def labels(self, chunk: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(pt, eta) [J,2] and truth labels [J,K] of a chunk."""
        columns = self._chunks[chunk].columns
        kinematics, truth = columns["kinematics"][1], columns["truth"][1].view(np.bool_)
        return kinematics.reshape(-1, 2), truth.reshape(len(kinematics) // 2, -1)
