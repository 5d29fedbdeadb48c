"""Staged files: the accepted jets of a group of source files, sorted by the key of the global order.

A staged file is an Arrow file with one record batch per chunk, each sorted by its column `key`, and a last, empty
batch that carries the record of what was read. Any range of keys is then a contiguous run of each batch, so that a
merge of any size needs little memory.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from bhive_mltf.data import philox
from bhive_mltf.data.arrow import ArrowShardWriter, decode, encode, read_batches
from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.columns import Selection
from bhive_mltf.data.manifest import Accounting, SkippedFile, Source
from bhive_mltf.data.schema import Schema
from bhive_mltf.data.slices import empty_block
from bhive_mltf.errors import CorruptFileError


def global_keys(seed: int, content_id: int, entries: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The key of each entry of a source file; jets are stored by ascending key."""
    identity = np.full(len(entries), content_id, np.uint64)
    return philox.random_bits(philox.key(seed, "global order"), identity, entries.astype(np.uint64))


@dataclass(frozen=True)
class StagedRecord:
    """What a staged file was made from.

    sources : files read; the first number of the staged jet ids is a position in here.
    skipped : files left out.
    accounting : jets of `sources`.
    batches : numbers of the valid record batches; others belong to a file that broke off.
    seed : of the keys.
    config_digest : `dataset_digest` of the config.
    """

    sources: tuple[Source, ...]
    skipped: tuple[SkippedFile, ...]
    accounting: Accounting
    batches: tuple[int, ...]
    seed: int
    config_digest: str


_RECORD: TypeAdapter[StagedRecord] = TypeAdapter(StagedRecord)


class StagedWriter:
    """Collects sorted chunks; `close` writes the record, without which the file is not readable."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._writer = ArrowShardWriter(path, schema)
        self._schema = schema
        self.n_batches = 0

    def append(self, block: JetBlock, keys: NDArray[np.uint64]) -> None:
        """Add a block; its jets are put in the order of their keys, uint64 [J]."""
        order = np.lexsort((block.jet_id[:, 1], keys))
        batch = encode(block.take(order), self._schema)
        self._writer.write(batch.append_column("key", pa.array(keys[order])))
        self.n_batches += 1

    def close(self, record: StagedRecord) -> None:
        """Write the record and finish the file."""
        batch = encode(empty_block(self._schema), self._schema)
        batch = batch.append_column("key", pa.array(np.zeros(0, np.uint64)))
        self._writer.write(batch, {"record": json.dumps(dataclasses.asdict(record), sort_keys=True)})
        self._writer.close()

    def abandon(self) -> None:
        """Release the file without a record."""
        self._writer.close()


class StagedFile:
    """A staged file, memory-mapped.

    Raises
    ------
    CorruptFileError
        Not a whole staged file.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        batches, metadata = read_batches(path)
        try:
            self.record = _RECORD.validate_json(metadata["record"])
        except (KeyError, ValidationError) as error:
            raise CorruptFileError(f"the staged file '{path}' has no record: remove it and convert again") from error
        self._selection = Selection.of(schema)
        self._batches = [batches[i] for i in self.record.batches]
        self.keys: list[NDArray[np.uint64]] = [batch.column("key").to_numpy() for batch in self._batches]
        self.bytes = sum(batch.nbytes for batch in self._batches)

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self._batches)

    def read(self, chunk: int, start: int, stop: int) -> JetBlock:
        """The jets [start, stop) of a chunk, in the order of their keys, without a copy."""
        return decode(self._batches[chunk].slice(start, stop - start), self._selection)

    def labels(self, chunk: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(pt, eta) [J,2] and truth labels [J,K] of a chunk."""
        narrow = decode(self._batches[chunk], Selection((), self._selection.n_truths))
        return narrow.kinematics, narrow.truth
