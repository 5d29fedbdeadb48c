"""Writing staged files; the format is in `staging`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.build.staging import (
    ALIGNMENT,
    LENGTH,
    MAGIC,
    Contents,
    StagedChunk,
    StagedRecord,
    chunk_arrays,
    padded,
)
from bhive_mltf.data.schema import GLOBAL, Schema
from bhive_mltf.errors import CorruptFileError

_PIECE_BYTES = 16 << 20


class StagedWriter:
    """Collects chunks; `close` writes the record, without which the file is not readable."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self.chunks: list[StagedChunk] = []
        self._schema = schema
        # Unbuffered: arrays are large, and nothing is left to be written when the file is given up.
        self._handle: BinaryIO = path.open("wb", buffering=0)
        self._write(MAGIC.ljust(ALIGNMENT, b"\0"))

    def append(self, block: JetBlock, keys: NDArray[np.uint64], source: int) -> None:
        """Add the jets of a source, which stand in the order of their keys, uint64 [J]."""
        arrays: dict[str, NDArray[Any]] = {"key": keys, "entry": block.jet_id[:, 1], "truth": block.truth}
        arrays["kinematics"] = block.kinematics
        for name, values in block.features.items():
            arrays[name] = values
            if name != GLOBAL:
                arrays[f"{name}_offsets"] = np.concatenate([[0], np.cumsum(block.counts[name], dtype=np.int64)])
        candidates = tuple(len(block.features[group.name]) for group in self._schema.candidate_groups)
        start, checksum = self._handle.tell(), xxhash.xxh3_64()
        for name, kind, shape in chunk_arrays(self._schema, len(block), candidates):
            content = np.ascontiguousarray(arrays[name], kind).reshape(shape)
            for piece in (content.reshape(-1).view(np.uint8).data, bytes(padded(content.nbytes) - content.nbytes)):
                checksum.update(piece)
                self._write(piece)
        size = self._handle.tell() - start
        self.chunks.append(StagedChunk(source, start, size, len(block), candidates, checksum.hexdigest()))

    def _write(self, content: bytes | memoryview) -> None:
        view = memoryview(content)
        while view:
            view = view[self._handle.write(view) :]

    def copy(self, path: Path, chunks: Sequence[StagedChunk], source: int) -> None:
        """Add chunks of another staged file, written under the same schema, as those of a source."""
        with path.open("rb", buffering=0) as other:
            for chunk in chunks:
                start = self._handle.tell()
                other.seek(chunk.start)
                _copy_bytes(other, self._handle, chunk.size)
                self.chunks.append(dataclasses.replace(chunk, source=source, start=start))

    def rewind(self, n_chunks: int) -> None:
        """Give up all chunks but the first `n_chunks`."""
        if len(self.chunks) > n_chunks:
            self._handle.seek(self.chunks[n_chunks].start)
            self._handle.truncate()
            del self.chunks[n_chunks:]

    def close(self, record: StagedRecord) -> None:
        """Write the record and finish the file."""
        contents = dataclasses.asdict(Contents(record, tuple(self.chunks)))
        text = json.dumps(contents, sort_keys=True).encode()
        self._write(text + LENGTH.pack(len(text)) + MAGIC)
        self._handle.close()

    def abandon(self) -> None:
        """Release the file without a record; nothing happens after `close`."""
        self._handle.close()


def _copy_bytes(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Copy from where the files stand, in the kernel where it can."""
    left = size
    while left:
        try:
            copied = os.copy_file_range(source.fileno(), target.fileno(), left)
        except (OSError, AttributeError):  # not between these file systems, or not on this one
            copied = target.write(source.read(min(left, _PIECE_BYTES)))
        if not copied:
            raise CorruptFileError(f"'{source.name}' has been cut off while it was read: convert again")
        left -= copied
