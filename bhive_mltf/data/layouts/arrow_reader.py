"""Reading of Arrow shards, block by block; what is read is checked once against its checksum."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.layouts.arrow_format import CHECKSUMS, FORMATS, checksum, numbers
from bhive_mltf.data.layouts.column_planes import Plane, from_json
from bhive_mltf.data.layouts.mapped_arrow import MappedArrow
from bhive_mltf.data.schema import GLOBAL, ColumnChoice, Schema
from bhive_mltf.errors import CorruptFileError, DataError
from bhive_mltf.files import mapping

JET_FIELDS = ("file", "entry", "process", "weight", "kinematics", "truth")
MAX_ROWS = 1 << 31
_REBUILD = "build the training set again"


class ArrowShard:
    """One shard, memory-mapped; jets by their row.

    planes : how the candidates lie.
    edges : first row of each block and, last, the number of rows; int64.
    compressed : the numbers must be decoded, so that there are no addresses in the file.

    Raises
    ------
    CorruptFileError
        Not a whole shard; from `read` and `check` too, when a block is not what was written.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self._schema = schema
        self._checked: dict[str, NDArray[np.bool_]] = {}
        self._spans: dict[str, _Spans] = {}
        self._last: tuple[int, Set[str], pa.RecordBatch] | None = None
        try:
            self._file = MappedArrow(path, _REBUILD)
            self.map = self._file.map
            metadata = self._file.schema.metadata or {}
            if metadata.get(b"format") not in FORMATS:
                raise CorruptFileError(f"'{path}' holds no jets of this format: {_REBUILD}")
            self._fields = list(self._file.schema.names)
            self.compressed = metadata.get(b"compression", b"none") != b"none"
            sizes, self._sums = self._survey()
            if metadata[b"format"] != FORMATS[0] and not all(self._sums):
                raise CorruptFileError(f"'{path}' has lost checksums: {_REBUILD}")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(error) from error
        planes = metadata.get(b"planes")
        self.planes = from_json(planes, schema, str(path))
        self.edges = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        needed = {*JET_FIELDS, *(p.field for group in self.planes.values() for p in group)}
        needed |= {group.name for group in schema.groups if group.name == GLOBAL}
        if missing := needed - {*self._fields}:
            raise self._broken(f"no column {min(missing)}")

    def _broken(self, reason: str) -> CorruptFileError:
        return CorruptFileError(f"'{self.path}' cannot be read as an Arrow file ({reason}): {_REBUILD}")

    def _unreadable(self, error: Exception, where: str = "") -> DataError:
        if isinstance(error, OSError) and error.errno:
            return mapping.cannot_read(self.path, error, _REBUILD)
        return self._broken(f"{where}{error}")

    def _survey(self) -> tuple[list[int], list[Mapping[str, str]]]:
        """Rows and checksums of each block; reads no more than one small column."""
        sizes, sums = [], []
        small = self._fields.index("process") if "process" in self._fields else 0
        for number, (rows, metadata) in enumerate(self._file.survey(small)):
            if not 0 < rows < MAX_ROWS:
                raise self._broken(f"block {number} has {rows} rows")
            sizes.append(rows)
            sums.append(json.loads(metadata.get(CHECKSUMS.encode(), b"{}")))
        return sizes, sums

    def _batch(self, block: int, fields: Set[str]) -> pa.RecordBatch:
        """The columns `fields` of a block, in memory and checked; the last ones are kept."""
        last = self._last
        if last is None or last[:2] != (block, fields):
            places = [i for i, name in enumerate(self._fields) if name in fields]
            options = pa.ipc.IpcReadOptions(included_fields=places, use_threads=False)
            with self._reading(block), pa.OSFile(str(self.path)) as file:
                batch = pa.ipc.open_file(file, options=options).get_batch(block)
                self._check(block, batch, fields)
            last = self._last = block, set(fields), batch
        return last[2]

    @contextmanager
    def _reading(self, block: int) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error, f"block {block}: ") from error

    def _check(self, block: int, batch: pa.RecordBatch, fields: Set[str]) -> None:
        """Hold columns against their checksums, the first time."""
        if all(name in self._checked and self._checked[name][block] for name in fields):
            return
        if len(batch) != self.n_rows(block):
            raise self._broken(f"block {block} has {len(batch)} rows")
        try:
            # Arrow ends the process when it is asked for an array of a negative length.
            batch.validate()
        except pa.ArrowException as error:
            raise self._broken(f"block {block}: {error}") from error
        for name in fields:
            done = self._checked.setdefault(name, np.zeros(len(self._sums), np.bool_))
            if not done[block] and self._sums[block] and self._checksum(batch, name) != self._sums[block].get(name):
                raise CorruptFileError(
                    f"'{self.path}' has changed since it was written, in column {name} of block {block} (rows "
                    f"{self.edges[block]} to {self.edges[block + 1] - 1}): {_REBUILD}"
                )
            done[block] = True

    def _checksum(self, batch: pa.RecordBatch, name: str) -> str:
        try:
            return checksum(batch.column(name))
        except (ValueError, TypeError, pa.ArrowException):
            # What describes the numbers is damaged.
            return ""

    def read(self, start: int, stop: int, choice: ColumnChoice) -> JetBlock:
        """The jets in rows [start, stop)."""
        first = max(0, int(np.searchsorted(self.edges, start, side="right")) - 1)
        pieces: list[JetBlock] = []
        for number in range(first, len(self.edges) - 1):
            low, high = int(self.edges[number]), int(self.edges[number + 1])
            if low >= stop and pieces:
                break
            begin = max(start, low) - low
            pieces.append(self._read_block(number, begin, max(begin, min(stop, high) - low), choice))
        return JetBlock.concatenate(pieces)

    def _read_block(self, block: int, begin: int, end: int, choice: ColumnChoice) -> JetBlock:
        fields = {*JET_FIELDS, *(field for name, wanted in choice.items() for field in self.fields(name, wanted))}
        batch = self._batch(block, fields)
        rows = slice(begin, end)
        features, counts = {}, {}
        for name, wanted in choice.items():
            if name == GLOBAL:
                values = self._matrix(batch, name, len(self._schema.group(name).columns))[rows]
                features[name] = values if wanted is None else values[:, wanted]
            else:
                features[name], counts[name] = self._candidates(batch, name, wanted, rows)
        jet_id = np.empty((end - begin, 2), np.int64)
        jet_id[:, 0] = numbers(batch.column("file"))[1][rows]
        jet_id[:, 1] = numbers(batch.column("entry"))[1][rows]
        return JetBlock(
            features=features,
            counts=counts,
            truth=self._matrix(batch, "truth", len(self._schema.truths))[rows].view(np.bool_),
            process=numbers(batch.column("process"))[1][rows],
            weight=numbers(batch.column("weight"))[1][rows],
            jet_id=jet_id,
            kinematics=self._matrix(batch, "kinematics", 2)[rows],
        )

    def fields(self, group: str, wanted: NDArray[np.int64] | None) -> list[str]:
        """Arrow columns that hold the columns `wanted` (positions, None: all) of a group."""
        if group == GLOBAL:
            return [GLOBAL]
        chosen = None if wanted is None else {*wanted.tolist()}
        planes = [p for p in self.planes[group] if chosen is None or chosen.intersection(p.positions)]
        # Without any column the counts are wanted still.
        return [plane.field for plane in planes or self.planes[group][:1]]

    def _candidates(
        self, batch: pa.RecordBatch, group: str, wanted: NDArray[np.int64] | None, rows: slice
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        parts: list[tuple[Plane, NDArray[Any]]] = []
        for plane in self.planes[group]:
            if plane.field in self.fields(group, wanted):
                offsets, flat = numbers(batch.column(plane.field))
                cut = offsets[rows.start : rows.stop + 1] if offsets is not None else np.zeros(1, np.int32)
                parts.append((plane, flat.reshape(-1, len(plane.positions))[cut[0] : cut[-1]]))
        counts = np.diff(cut)
        positions = np.arange(sum(len(p.positions) for p in self.planes[group])) if wanted is None else wanted
        if len(parts) == 1:
            plane, values = parts[0]
            places = [plane.positions.index(i) for i in positions.tolist()]
            values = values if places == list(range(values.shape[1])) else values[:, places]
            return values.astype(np.float32, copy=False), counts
        joined = np.empty((int(counts.sum()), len(positions)), np.float32)
        for plane, values in parts:
            for target, column in enumerate(positions.tolist()):
                if column in plane.positions:
                    joined[:, target] = values[:, plane.positions.index(column)]
        return joined, counts

    def _matrix(self, batch: pa.RecordBatch, field: str, width: int) -> NDArray[Any]:
        return numbers(batch.column(field))[1].reshape(-1, width)

    def raw(self, block: int, fields: Set[str]) -> Mapping[str, tuple[NDArray[Any] | None, NDArray[Any]]]:
        """Offsets and numbers of some columns of a block, checked; without compression, as they lie in the file.

        What lies in the file has just been read, each time: if it were away, touching it might end the process.
        """
        if self.compressed:
            batch = self._batch(block, fields)
            return {name: numbers(batch.column(name)) for name in fields}
        if all(name in self._spans and self._spans[name].known[block] for name in fields):
            for name in fields:
                extent = self._spans[name].extent(block, self.n_rows(block))
                mapping.populate(self.map, self.path, *extent, _REBUILD)
        else:
            with self._reading(block):
                batch = self._file.batch(block, fields)
                self._check(block, batch, fields)
            for name in fields:
                offsets, flat = numbers(batch.column(name))
                spans = self._spans.setdefault(name, _Spans(len(self._sums), flat.dtype))
                spans.add(block, self.address(flat), len(flat), None if offsets is None else self.address(offsets))
        return {name: self._spans[name].arrays(block, self.map, self.n_rows(block)) for name in fields}

    def forget_pages(self) -> None:
        """Give back what is mapped of the file, or held in memory; it comes again when it is read again."""
        self._last = None
        self.map.madvise(mmap.MADV_DONTNEED)

    def n_rows(self, block: int) -> int:
        """Jets of a block."""
        return int(self.edges[block + 1] - self.edges[block])

    def address(self, values: NDArray[Any]) -> int:
        """Where an array from `raw` begins in the file."""
        return int(values.ctypes.data) - self._file.address


class _Spans:
    """Where a column lies in the file, block by block; Arrow takes longer to say."""

    def __init__(self, n_blocks: int, kind: np.dtype[Any]) -> None:
        self.known = np.zeros(n_blocks, np.bool_)
        self._kind = kind
        self._values = np.zeros((n_blocks, 2), np.int64)
        self._offsets = np.full(n_blocks, -1, np.int64)

    def add(self, block: int, start: int, length: int, offsets: int | None) -> None:
        self._values[block] = start, length
        self._offsets[block] = -1 if offsets is None else offsets
        self.known[block] = True

    def extent(self, block: int, rows: int) -> tuple[int, int]:
        """First byte and length of a block's offsets and numbers."""
        start, length = self._values[block].tolist()
        first, end = int(self._offsets[block]), start + length * self._kind.itemsize
        if first < 0:
            return start, end - start
        # an empty column lies nowhere
        places = [first, first + 4 * (rows + 1), *([start, end] if length else [])]
        return min(places), max(places) - min(places)

    def arrays(self, block: int, file: mmap.mmap, rows: int) -> tuple[NDArray[Any] | None, NDArray[Any]]:
        start, length = self._values[block].tolist()
        first = int(self._offsets[block])
        offsets = None if first < 0 else np.frombuffer(file, np.int32, rows + 1, first)
        return offsets, np.frombuffer(file, self._kind, length, start)
