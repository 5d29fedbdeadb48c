"""B-Hive's rows: one jet as one row of equal numbers, padded, with process, labels and weight at the end.

A file is an LZ4 frame whose content is an array of float32 (or float16): number of rows, number of columns, then the
rows: global columns, the candidate groups (candidate by candidate), process, truth labels, weight.
J: jets; C: columns of a row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import lz4.frame
import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock, pad, unpad
from bhive_mltf.data.layouts.lz4_frame import FrameReader
from bhive_mltf.data.schema import GLOBAL, ColumnChoice, Schema
from bhive_mltf.errors import CorruptFileError, DataError

HEADER_NUMBERS = 2


def n_columns(schema: Schema) -> int:
    """Columns of a row."""
    return sum(len(group.columns) * group.length for group in schema.groups) + len(schema.truths) + 2


def describe_columns(schema: Schema) -> str:
    """How the columns of a row add up, for messages."""
    groups = [f"{group.name} {group.length} x {len(group.columns)}" for group in schema.groups]
    return ", ".join([*groups, "process 1", f"truths {len(schema.truths)}", "weight 1"])


def to_rows(block: JetBlock, schema: Schema) -> NDArray[np.float32]:
    """Jets as rows, float32 [J,C]."""
    rows = np.empty((len(block), n_columns(schema)), np.float32)
    first = 0
    for group in schema.groups:
        values = block.features[group.name]
        if group.name != GLOBAL:
            values = pad(values, block.counts[group.name], group.length).reshape(len(block), -1)
        rows[:, first : first + values.shape[1]] = values
        first += values.shape[1]
    rows[:, first] = block.process
    rows[:, first + 1 : -1] = block.truth
    rows[:, -1] = block.weight
    return rows


def kinematic_columns(schema: Schema) -> list[int]:
    """Columns of pt and eta in a row.

    Raises
    ------
    DataError
        They are not among the global features.
    """
    columns = schema.groups[0].columns if schema.groups and schema.groups[0].name == GLOBAL else ()
    for key in (schema.pt_key, schema.eta_key):
        if key not in columns:
            raise DataError(
                f"the LZ4 layout keeps pt and eta as global features, but `{key}` is not one: add it to "
                "`global_features`, or use `dataset: ArrowDataset`"
            )
    return [columns.index(schema.pt_key), columns.index(schema.eta_key)]


def check_layout(schema: Schema, precision: str, config_name: str) -> None:
    """Refuse jets that the layout cannot hold.

    Raises
    ------
    DataError
        pt or eta is not a global feature, or the numbers are float16.
    """
    kinematic_columns(schema)
    if precision == "float16":
        raise DataError(
            f"config {config_name}: the LZ4 layout in float16 cannot hold its own number of rows (above 2048) "
            "and would round pt and eta: use `dataset: ArrowDataset`, or `data_precision: float32`"
        )


def from_rows(rows: NDArray[Any], schema: Schema, choice: ColumnChoice, jet_id: NDArray[np.int64]) -> JetBlock:
    """Rows [J,C] of float32 or float16 as a block; candidates that are all zero at the end of a jet are padding."""
    features, counts = {}, {}
    first = 0
    for group in schema.groups:
        last = first + len(group.columns) * group.length
        if group.name in choice:
            values = rows[:, first:last]
            if group.name != GLOBAL:
                values, counts[group.name] = unpad(values.reshape(len(rows), group.length, -1))
            if (wanted := choice[group.name]) is not None:
                values = values[:, wanted]
            features[group.name] = np.ascontiguousarray(values, np.float32)
        first = last
    return JetBlock(
        features=features,
        counts=counts,
        truth=rows[:, first + 1 : -1] != 0,
        process=rows[:, first].astype(np.int16),
        weight=rows[:, -1].astype(np.float32),
        jet_id=jet_id,
        kinematics=rows[:, kinematic_columns(schema)].astype(np.float32),
    )


class LZ4ShardWriter:
    """Writes blocks to a file in B-Hive's layout, float32.

    Blocks of the frame are independent, so that a reader can start at any of them, and carry checksums.
    """

    def __init__(self, path: Path, schema: Schema, n_rows: int) -> None:
        self._schema = schema
        self._missing = n_rows
        self._handle: BinaryIO = path.open("wb")
        self._frame = lz4.frame.LZ4FrameCompressor(
            block_size=lz4.frame.BLOCKSIZE_MAX1MB, block_linked=False, block_checksum=True
        )
        columns = n_columns(schema)
        header = np.array([n_rows, columns], "<f4")
        self._handle.write(self._frame.begin(source_size=4 * (HEADER_NUMBERS + n_rows * columns)))
        self._handle.write(self._frame.compress(header.tobytes()))

    def append(self, block: JetBlock) -> None:
        """Add the jets of a block."""
        self._handle.write(self._frame.compress(to_rows(block, self._schema).astype("<f4", copy=False).tobytes()))
        self._missing -= len(block)

    def close(self) -> None:
        """Finish the file; without all of its rows it stays a frame that nobody can read."""
        if not self._handle.closed:
            with self._handle:
                if not self._missing:
                    self._handle.write(self._frame.flush())


class LZ4Shard:
    """One shard in B-Hive's layout; jets by their row.

    frame : its LZ4 frame.

    Parameters
    ----------
    precision : "float32" or "float16".
    points, checks : of the frame, if there are any; see `FrameReader`.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        precision: str,
        points: NDArray[np.void] | None = None,
        checks: NDArray[np.void] | None = None,
    ) -> None:
        self._path = path
        self._schema = schema
        self._kind = np.dtype(precision).newbyteorder("<")
        self.frame = FrameReader(path, points, checks)
        self._check_header(precision)

    def _check_header(self, precision: str) -> None:
        content = self.frame.read(0, 4 * HEADER_NUMBERS)
        self._announced, found = np.frombuffer(content, self._kind)[:HEADER_NUMBERS]
        expected = n_columns(self._schema)
        # float16 rounds the number of columns above 2048, and upstream writes what comes of it.
        if found == np.array(expected, self._kind):
            return
        other = "float16" if precision == "float32" else "float32"
        if np.frombuffer(content, other)[1] == np.array(expected, other):
            raise CorruptFileError(
                f"'{self._path}' holds {other} numbers, the config says {precision}: set `data_precision: {other}`"
            )
        raise CorruptFileError(
            f"'{self._path}' has {found:.0f} columns, the config describes {expected} "
            f"({describe_columns(self._schema)}): use the config that the dataset was made with"
        )

    def n_rows(self, content_size: int) -> int:
        """Jets in a file with this many bytes of content.

        The header's number only confirms it, in the header's precision: in float16 it is rounded, or infinite.
        """
        width = n_columns(self._schema) * self._kind.itemsize
        rows, rest = divmod(content_size - HEADER_NUMBERS * self._kind.itemsize, width)
        with np.errstate(over="ignore"):
            announced = np.array(rows, self._kind)
        if rest or rows < 0 or announced != self._announced:
            raise CorruptFileError(
                f"'{self._path}' announces {self._announced:.0f} jets of {width} bytes, but holds {content_size}: "
                "restore it from where it came from"
            )
        return rows

    def read(self, start: int, stop: int, choice: ColumnChoice) -> JetBlock:
        """The jets in rows [start, stop); their ids are (0, row)."""
        columns = n_columns(self._schema)
        first = HEADER_NUMBERS + start * columns
        last = HEADER_NUMBERS + stop * columns
        content = self.frame.read(first * self._kind.itemsize, last * self._kind.itemsize)
        return self.block(np.frombuffer(content, self._kind).reshape(-1, columns), start, choice)

    def forget_pages(self) -> None:
        """Nothing of the file is mapped."""

    def block(self, rows: NDArray[Any], start: int, choice: ColumnChoice) -> JetBlock:
        """Rows [J,C] of which the first is row `start` of the file."""
        jet_id = np.stack([np.zeros(len(rows), np.int64), np.arange(start, start + len(rows))], axis=1)
        return from_rows(rows, self._schema, choice, jet_id)
