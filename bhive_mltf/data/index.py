"""The index of a training set: one small row per jet in stored order, memory-mapped.

Sampling, splitting and padding are decided here, before any feature is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.errors import DataError
from bhive_mltf.files import atomic, mapping

MAX_TRUTHS = 64
_ADVICE = "build the training set again"


def truth_bits(truth: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Truth labels [J,K] as uint64 [J], bit k for label k."""
    bits = np.left_shift(np.uint64(1), np.arange(truth.shape[1], dtype=np.uint64))
    packed: NDArray[np.uint64] = np.where(truth, bits, np.uint64(0)).sum(axis=1, dtype=np.uint64)
    return packed


def row_type(candidate_groups: Sequence[str]) -> np.dtype[np.void]:
    """Type of one row: file, entry, weight, process, truth (bit k: label k), n_<group>."""
    return np.dtype(
        [("file", "<u4"), ("entry", "<i8"), ("weight", "<f4"), ("process", "<i2"), ("truth", "<u8")]
        + [(f"n_{name}", "<u2") for name in candidate_groups]
    )


class IndexWriter:
    """Appends blocks of jets to an index; `finish` writes their number into its header."""

    def __init__(self, handle: BinaryIO, candidate_groups: Sequence[str], n_truths: int) -> None:
        if n_truths > MAX_TRUTHS:
            raise DataError(f"the config has {n_truths} truth labels, a training set holds at most {MAX_TRUTHS}")
        self._handle = handle
        self._type = row_type(candidate_groups)
        self.n_jets = 0
        self._write_header()

    def _write_header(self) -> None:
        # numpy leaves room in the header for any length, so that it can be written again in place.
        descr = np.lib.format.dtype_to_descr(self._type)
        header = {"descr": descr, "fortran_order": False, "shape": (self.n_jets,)}
        np.lib.format.write_array_header_1_0(self._handle, header)

    def append(self, block: JetBlock) -> None:
        """Add the jets of `block`, in its order."""
        rows = np.empty(len(block), self._type)
        rows["file"] = block.jet_id[:, 0]
        rows["entry"] = block.jet_id[:, 1]
        rows["weight"] = block.weight
        rows["process"] = block.process
        rows["truth"] = truth_bits(block.truth)
        for name, counts in block.counts.items():
            rows[f"n_{name}"] = counts
        self._handle.write(rows.tobytes())
        self.n_jets += len(block)

    def finish(self) -> None:
        """Write the number of jets."""
        self._handle.seek(0)
        self._write_header()


@contextmanager
def write_index(path: Path, candidate_groups: Sequence[str], n_truths: int) -> Iterator[IndexWriter]:
    """An index file that appears at `path` when the block ends without an error."""
    with atomic.replace_file(path) as temporary, temporary.open("wb") as handle:
        writer = IndexWriter(handle, candidate_groups, n_truths)
        yield writer
        writer.finish()


class JetIndex:
    """Columns of the index, or of a range of it; each a view of the mapped file.

    Cheap to slice (`index[a:b]` or `index[range]`) and to pickle: a copy maps the file anew.
    """

    def __init__(self, path: Path, start: int = 0, stop: int | None = None) -> None:
        self._path = Path(path)
        self._range = (start, stop)

    @cached_property
    def _rows(self) -> NDArray[np.void]:
        start, stop = self._range
        return self._file.view(np.ndarray)[start:stop]

    @cached_property
    def _file(self) -> np.memmap[Any, np.dtype[np.void]]:
        try:
            return mapping.load_array(self._path, _ADVICE)
        except (OSError, ValueError, EOFError) as error:
            raise mapping.cannot_read(self._path, error, _ADVICE) from error

    def populate(self, jets: range) -> None:
        """Have the rows of these jets read now; they were read when the index was opened, and may be away again.

        Raises
        ------
        CorruptFileError, DiskError : they cannot be read any more.
        """
        rows = self._rows[jets.start : jets.stop]
        file = self._file
        first = file.offset + rows.ctypes.data - file.ctypes.data
        mapping.populate(mapping.map_of(file), self._path, first, rows.nbytes, _ADVICE)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, jets: slice | range) -> JetIndex:
        first, last, step = jets.indices(len(self)) if isinstance(jets, slice) else (jets.start, jets.stop, jets.step)
        if step != 1:
            raise ValueError("an index is sliced by contiguous ranges")
        return JetIndex(self._path, self._range[0] + first, self._range[0] + max(first, last))

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_range": self._range}

    @property
    def file(self) -> NDArray[np.uint32]:
        """Index of the source file in the manifest, uint32 [J]."""
        return self._rows["file"]

    @property
    def entry(self) -> NDArray[np.int64]:
        """Entry in the source file's tree, int64 [J]."""
        return self._rows["entry"]

    @property
    def weight(self) -> NDArray[np.float32]:
        """Sampling probability, float32 [J]."""
        return self._rows["weight"]

    @property
    def process(self) -> NDArray[np.int16]:
        """Index of the process, int16 [J]."""
        return self._rows["process"]

    @property
    def truth_bits(self) -> NDArray[np.uint64]:
        """Truth labels, uint64 [J], bit k for label k."""
        return self._rows["truth"]

    def counts(self, group: str) -> NDArray[np.uint16]:
        """Number of candidates of a group, uint16 [J]; KeyError for a group that the set does not have."""
        name = f"n_{group}"
        if name not in (self._rows.dtype.names or ()):
            raise KeyError(group)
        return self._rows[name]

    def ids(self) -> NDArray[np.int64]:
        """Jet ids (source file, entry), int64 [J,2]."""
        return np.stack([self.file.astype(np.int64), self.entry], axis=1)
