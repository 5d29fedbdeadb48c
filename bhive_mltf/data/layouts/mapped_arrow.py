"""Arrow IPC files, mapped: record batches whose numbers lie in the file, and are not touched before they were read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from bhive_mltf.files import mapping


class MappedArrow:
    """An Arrow IPC file.

    schema : of its batches.
    map, address : the file in memory, and where it begins there.

    Parameters
    ----------
    advice : what to do about a damaged file.

    Raises
    ------
    OSError, ValueError, pyarrow.ArrowException
        It cannot be opened; from all methods too.
    CorruptFileError, DiskError
        From `populate` and `batch`: a part of the file cannot be read.
    """

    def __init__(self, path: Path, advice: str) -> None:
        self._path, self._advice = path, advice
        self.map = mapping.open_map(path)
        self._buffer = pa.py_buffer(self.map)
        self.address = int(self._buffer.address)
        self._file = mapping.NotedReads(path)
        with self._reading():
            self.schema = self._open(None).schema
        self._footer = self._file.taken()
        # of each batch: what describes it
        self._headers: list[list[tuple[int, int]]] = []
        self._mapped: Any = None

    def _open(self, field: int | None) -> Any:  # noqa: ANN401 - pyarrow has no types
        options = pa.ipc.IpcReadOptions(included_fields=None if field is None else [field], use_threads=False)
        return pa.ipc.open_file(pa.PythonFile(self._file, "r"), options=options)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """An error of the system as it was, where Arrow makes another one of it."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            if self._file.failure is None:
                raise
            raise self._file.failure from error

    def survey(self, field: int) -> Iterator[tuple[int, Mapping[bytes, bytes]]]:
        """Rows and metadata of each batch, before any other is asked for; reads one column, which should be small."""
        with self._reading():
            reader = self._open(field)
        self._file.taken()
        for number in range(reader.num_record_batches):
            with self._reading():
                batch, metadata = reader.get_batch_with_custom_metadata(number)
            self._headers.append(self._file.taken())
            yield batch.num_rows, dict(metadata or {})

    def batch(self, number: int, fields: Iterable[str]) -> pa.RecordBatch:
        """A batch as it lies in the file, its columns `fields` populated; a choice of columns would be copied."""
        for start, size in (*self._footer, *self._headers[number]):
            self.populate(start, size)
        if self._mapped is None:
            self._mapped = pa.ipc.open_file(
                pa.BufferReader(self._buffer), options=pa.ipc.IpcReadOptions(use_threads=False)
            )
        batch = self._mapped.get_batch(number)
        for name in fields:
            for buffer in filter(None, batch.column(name).buffers()):
                self.populate(buffer.address - self.address, buffer.size)
        return batch

    def populate(self, start: int, size: int) -> None:
        """Have a part of the file read now, so that what cannot be read is an error and not a signal that kills."""
        mapping.populate(self.map, self._path, start, size, self._advice)
