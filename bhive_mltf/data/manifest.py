"""`manifest.json`: what a training set is made of, from what, and how many jets went where."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.schema import Schema
from bhive_mltf.errors import CorruptFileError, DatasetMismatchError, FilelistError
from bhive_mltf.files import atomic, mapping

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
Layout = Literal["ArrowDataset", "LZ4Dataset"]
Compression = Literal["none", "lz4", "zstd"]


@dataclass(frozen=True)
class Shard:
    """One file of jets: name in the directory, jets, sum of their weights, size, XXH3-64 in hexadecimal."""

    file: str
    rows: int
    sum_weight: float
    bytes: int
    checksum: str


@dataclass(frozen=True)
class Source:
    """One input file: content id as 16 hexadecimal digits, jets in its tree, accepted ones, index of its process."""

    path: str
    content_id: str
    entries: int
    accepted: int
    process: int


@dataclass(frozen=True)
class SkippedFile:
    """An input file left out under --skip-bad-files."""

    path: str
    reason: str


@dataclass(frozen=True)
class Accounting:
    """Every jet read is accepted or rejected for one named reason."""

    read: int = 0
    accepted: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Accounting) -> Accounting:
        reasons = sorted({*self.rejected, *other.rejected})
        return Accounting(
            self.read + other.read,
            self.accepted + other.accepted,
            {name: self.rejected.get(name, 0) + other.rejected.get(name, 0) for name in reasons},
        )

    @property
    def balanced(self) -> bool:
        """True when no jet is unaccounted for."""
        return self.read == self.accepted + sum(self.rejected.values())

    def __str__(self) -> str:
        reasons = ", ".join(f"{name} {number}" for name, number in self.rejected.items()) or "none"
        return f"{self.read} jets read, {self.accepted} accepted, rejected: {reasons}"


@dataclass(frozen=True)
class Manifest:
    """What a training set directory holds.

    layout : how the shards are written.
    schema : groups, truth labels and processes.
    sources : the first number of a jet id is a position in here.
    accounting : jets read, accepted and rejected.
    config_name, config_digest : stem and `dataset_digest` of the config.
    seed : of the global order.
    chunk_size : jets per shard.
    filelist : the files asked for; `sources` and `skipped_files` together.
    digest : of ids, columns and values; the same for every layout, chunk size and place.
    precision : what the inputs were rounded to, "float32" or "float16".
    derived : made from the shards of an upstream dataset that had no manifest.
    weighting : how the weights were found, a name of `weighting.methods`.
    jet_ids : False when jet ids are (shard, row), since the ids in the ntuples are not known.
    files : XXH3-64 of the other files of the set (index, histogram, ...), by name; empty in old manifests.
    compression : codec of Arrow shards.
    full_width : columns per group that `precision` leaves alone.
    storage_order : columns per group that Arrow shards keep together, in this order.
    """

    layout: Layout
    schema: Schema
    n_jets: int
    shards: tuple[Shard, ...]
    sources: tuple[Source, ...]
    accounting: Accounting
    config_name: str
    config_digest: str
    seed: int
    chunk_size: int
    code_version: str
    filelist: tuple[str, ...]
    skipped_files: tuple[SkippedFile, ...]
    digest: str
    precision: Literal["float32", "float16"] = "float32"
    derived: bool = False
    jet_ids: bool = True
    weighting: str = "reference"
    files: Mapping[str, str] = field(default_factory=dict)
    compression: Compression = "none"
    full_width: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    storage_order: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def content_ids(self) -> NDArray[np.uint64]:
        """Content ids of the sources, uint64 [n_sources]."""
        return np.array([int(source.content_id, 16) for source in self.sources], np.uint64)

    def write(self, directory: Path) -> None:
        """Write `manifest.json`; keys sorted, no dates, so that the same set gives the same bytes."""
        value = _ADAPTER.dump_python(self, mode="json")
        value[_CHECKSUM] = _checksum(value)
        atomic.write_text(directory / FILE_NAME, json.dumps(value, indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """The manifest of a directory.

        Raises
        ------
        CorruptFileError, DiskError
            It is not a manifest, or cannot be read.
        DatasetMismatchError
            It was written by a newer format.
        """
        path = directory / FILE_NAME
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            version = int(value["format_version"])
        except OSError as error:
            raise mapping.cannot_read(path, error, "build the training set again") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"'{path}' is not a manifest ({error}): build the training set again") from error
        if version != FORMAT_VERSION:
            raise DatasetMismatchError(
                f"'{path}' has format {version}, this version reads {FORMAT_VERSION}: build the training set again, or "
                "use the version of the code that wrote it"
            )
        recorded = value.pop(_CHECKSUM, None)
        try:
            manifest = _ADAPTER.validate_python(value)
        except ValidationError as error:
            raise CorruptFileError(
                f"'{path}' is not a whole manifest ({error.error_count()} errors, first: {error.errors()[0]['loc']}): "
                "build the training set again"
            ) from error
        if recorded is not None and recorded != _checksum(value):
            raise CorruptFileError(f"'{path}' has changed since it was written: build the training set again")
        return manifest


def _checksum(value: Mapping[str, object]) -> str:
    return str(xxhash.xxh3_64_hexdigest(json.dumps(value, sort_keys=True).encode()))


_CHECKSUM = "checksum"
_ADAPTER: TypeAdapter[Manifest] = TypeAdapter(Manifest)


class DatasetDigest:
    """Collects the digest over the jets in stored order, block by block of any size.

    Parameters
    ----------
    schema : what the set holds; part of the digest.
    content_ids : uint64, content id of each source file of the manifest.
    """

    def __init__(self, schema: Schema, content_ids: NDArray[np.uint64]) -> None:
        self._schema = schema
        self._content_ids = content_ids
        self._columns: dict[str, xxhash.xxh3_128] = {}

    def update(self, block: JetBlock) -> None:
        """Add the jets of `block`."""
        for name, values in block.features.items():
            self._add(f"features/{name}", values, "<f4")
        for name, counts in block.counts.items():
            self._add(f"counts/{name}", counts, "<i4")
        self._add("truth", block.truth, "u1")
        self._add("process", block.process, "<i2")
        self._add("weight", block.weight, "<f4")
        self._add("kinematics", block.kinematics, "<f4")
        self._add("content_id", self._content_ids[block.jet_id[:, 0]], "<u8")
        self._add("entry", block.jet_id[:, 1], "<i8")

    def _add(self, name: str, values: NDArray[Any], kind: str) -> None:
        column = self._columns.setdefault(name, xxhash.xxh3_128())
        column.update(np.ascontiguousarray(values, kind).data)

    def hexdigest(self) -> str:
        """SHA-256 over schema and columns, 64 hexadecimal digits."""
        columns = {name: column.hexdigest() for name, column in self._columns.items()}
        text = json.dumps({"schema": dataclasses.asdict(self._schema), "columns": columns}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


_PIECE_BYTES = 1 << 20


def content_id(path: str | Path) -> int:
    """64-bit XXH3 of the bytes of a local file.

    Raises
    ------
    CorruptFileError
        The file is empty.
    OSError
        The file cannot be read: whether that is its own fault, the caller says.
    """
    return int(_read_hash(path).intdigest())


def file_checksum(path: str | Path) -> str:
    """XXH3-64 of a local file, as 16 hexadecimal digits.

    Raises
    ------
    CorruptFileError
        The file cannot be read, or is empty.
    """
    try:
        return str(_read_hash(path).hexdigest())
    except OSError as error:
        raise mapping.cannot_read(path, error, "restore it, or make it again") from error


def _read_hash(path: str | Path) -> xxhash.xxh3_64:
    # Read, not mapped: a block that the disk refuses is an OSError then, and not a signal that kills the process.
    state = xxhash.xxh3_64()
    buffer = bytearray(_PIECE_BYTES)
    with Path(path).open("rb", buffering=0) as handle, memoryview(buffer) as view:
        if os.fstat(handle.fileno()).st_size == 0:
            raise CorruptFileError(f"the file '{path}' is empty: remove it from the list, or pass --skip-bad-files")
        left = os.fstat(handle.fileno()).st_size
        while size := handle.readinto(view):
            state.update(view[:size])
            left -= size
        if left > 0:
            raise OSError(errno.EIO, "it has become shorter while it was read", str(path))
    return state


def remote_content_id(uuid: str, size: int) -> int:
    """The id of a remote file, from the identifier that ROOT gave it and its size in bytes."""
    return int(xxhash.xxh3_64_intdigest(f"{uuid}/{size}".encode()))


def refuse_equal_contents(sources: Iterable[tuple[str, int]]) -> None:
    """FilelistError when two of the (path, content id) hold the same bytes: their jets would count double."""
    seen: dict[int, str] = {}
    for path, identity in sources:
        if identity in seen:
            raise FilelistError(
                f"'{seen[identity]}' and '{path}' hold the same bytes: their jets would count double; remove one of "
                "them from the list"
            )
        seen[identity] = path
