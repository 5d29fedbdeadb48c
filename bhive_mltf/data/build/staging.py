"""Staged files: the accepted jets of a group of source files, in sorted chunks.

A staged file is a row of chunks, each sorted by the key of the global order, and a last part that says where they lie
and what was read. Any range of keys is then a contiguous run of each chunk, so that a merge of any size needs little
memory. A chunk is the same bytes wherever it stands, so that pieces of a file made by several processes are put
together by copying bytes.

Format: the word MAGIC; chunks, each at a multiple of 64 bytes, their arrays (`chunk_arrays`) likewise; the last part as
JSON; its length in bytes (uint64); MAGIC. Numbers are little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.loader import order
from bhive_mltf.data.manifest import Accounting, SkippedFile, Source
from bhive_mltf.data.schema import GLOBAL, Schema
from bhive_mltf.errors import CorruptFileError

MAGIC = b"bhstage2"
ALIGNMENT = 64
LENGTH = struct.Struct("<Q")


def global_keys(seed: int, content_id: int, entries: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The key of each entry of a source file; jets are stored by ascending key."""
    identity = np.full(len(entries), content_id, np.uint64)
    return order.random_bits(order.random_key(seed, "global order"), identity, entries.astype(np.uint64))


@dataclass(frozen=True)
class StagedRecord:
    """What a staged file was made from.

    sources : files read, which the chunks refer to.
    skipped : files left out.
    accounting : jets of `sources`.
    seed : of the keys.
    config_digest : `dataset_digest` of the config.
    """

    sources: tuple[Source, ...]
    skipped: tuple[SkippedFile, ...]
    accounting: Accounting
    seed: int
    config_digest: str


@dataclass(frozen=True)
class StagedChunk:
    """Where the jets of a chunk lie.

    source : position in the record's sources.
    start, size : bytes in the file.
    jets : number of jets.
    candidates : per candidate group of the schema.
    checksum : XXH3-64 of the bytes, in hexadecimal.
    """

    source: int
    start: int
    size: int
    jets: int
    candidates: tuple[int, ...]
    checksum: str


@dataclass(frozen=True)
class Contents:
    """The last part of a staged file."""

    record: StagedRecord
    chunks: tuple[StagedChunk, ...]


CONTENTS: TypeAdapter[Contents] = TypeAdapter(Contents)


def chunk_arrays(schema: Schema, jets: int, candidates: Sequence[int]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of the arrays of a chunk, in their order."""
    yield "key", "<u8", (jets,)
    yield "entry", "<i8", (jets,)
    yield "truth", "|b1", (jets, len(schema.truths))
    yield "kinematics", "<f4", (jets, 2)
    numbers = iter(candidates)
    for group in schema.groups:
        if group.name == GLOBAL:
            yield GLOBAL, "<f4", (jets, len(group.columns))
        else:
            yield f"{group.name}_offsets", "<i8", (jets + 1,)
            yield group.name, "<f4", (next(numbers), len(group.columns))


def padded(size: int) -> int:
    """`size` with the bytes that bring it to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class StagedFile:
    """A staged file, memory-mapped.

    Raises
    ------
    CorruptFileError
        Not a whole staged file.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self._schema = schema
        try:
            with path.open("rb") as handle:
                self._content = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            contents = _contents(self._content)
            self.record, self.chunks = contents.record, contents.chunks
            # Once, not per read: a merge reads small pieces of all chunks again and again.
            self._views = [self._arrays(chunk) for chunk in self.chunks]
        except (OSError, ValueError, TypeError, ValidationError) as error:
            raise CorruptFileError(f"'{path}' is not a whole staged file: remove it and convert again") from error
        self.keys: list[NDArray[np.uint64]] = [views["key"] for views in self._views]
        self.bytes = sum(chunk.size for chunk in self.chunks)

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self.chunks)

    def _arrays(self, chunk: StagedChunk) -> dict[str, NDArray[Any]]:
        """The arrays of a chunk, as views of the file."""
        found = {}
        at = chunk.start
        for name, kind, shape in chunk_arrays(self._schema, chunk.jets, chunk.candidates):
            dtype = np.dtype(kind)
            found[name] = np.ndarray(shape, dtype, self._content, at)
            at += padded(math.prod(shape) * dtype.itemsize)
        return found

    def verify(self, chunk: int) -> None:
        """Hold the bytes of a chunk against its checksum; CorruptFileError when they differ."""
        place = self.chunks[chunk]
        with memoryview(self._content) as view, view[place.start : place.start + place.size] as content:
            if xxhash.xxh3_64_hexdigest(content) != place.checksum:
                raise CorruptFileError(f"the staged file '{self.path}' is damaged: remove it and convert again")

    def read(self, chunk: int, start: int, stop: int) -> JetBlock:
        """The jets [start, stop) of a chunk, in the order of their keys; large arrays are views of the file."""
        place = self.chunks[chunk]
        arrays = self._views[chunk]
        features, counts = {}, {}
        for group in self._schema.groups:
            values = arrays[group.name]
            if group.name == GLOBAL:
                features[GLOBAL] = values[start:stop]
            else:
                offsets = arrays[f"{group.name}_offsets"][start : stop + 1]
                features[group.name] = values[offsets[0] : offsets[-1]]
                counts[group.name] = (offsets[1:] - offsets[:-1]).astype(np.int32)
        jet_id = np.empty((stop - start, 2), np.int64)
        jet_id[:, 0] = place.source
        jet_id[:, 1] = arrays["entry"][start:stop]
        return JetBlock(
            features=features,
            counts=counts,
            truth=arrays["truth"][start:stop],
            process=np.full(stop - start, self.record.sources[place.source].process, np.int16),
            weight=np.zeros(stop - start, np.float32),
            jet_id=jet_id,
            kinematics=arrays["kinematics"][start:stop],
        )

    def labels(self, chunk: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(pt, eta) [J,2] and truth labels [J,K] of a chunk."""
        arrays = self._views[chunk]
        return arrays["kinematics"], arrays["truth"]


def _contents(content: mmap.mmap) -> Contents:
    end = len(content) - len(MAGIC)
    if end < ALIGNMENT + LENGTH.size or content[:8] != MAGIC or content[end:] != MAGIC:
        raise ValueError("no mark at an end")
    (length,) = LENGTH.unpack_from(content, end - LENGTH.size)
    start = end - LENGTH.size - length
    if start < ALIGNMENT:
        raise ValueError("no record")
    contents = CONTENTS.validate_json(content[start : end - LENGTH.size])
    if any(chunk.start + chunk.size > start for chunk in contents.chunks):
        raise ValueError("a chunk lies outside")
    return contents
