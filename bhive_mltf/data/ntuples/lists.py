"""Lists of numbers out of the bytes of their entries: headers stripped, byte order turned.

Branches that share a counter have entries of the same sizes, so that what is worked out for the first serves all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.ntuples.baskets import Layout

# std::vector of numbers: byte count (4), version (2), number of elements (4).
_COUNT_AT, _COUNT_BYTES = 6, 4


@dataclass(frozen=True)
class Index:
    """Where numbers lie in the bytes of some entries.

    offsets : int64 [J+1], of the numbers of each entry.
    counts : [J], as the headers must say them, big-endian.
    unit : bytes; everything lies at multiples of it.
    keep : bool, the units that are no header; None when there are none.
    count_units : units [J, 4 / unit] of the headers that hold the number of elements.
    """

    offsets: NDArray[np.int64]
    counts: NDArray[np.int32]
    unit: int
    keep: NDArray[np.bool_] | None
    count_units: NDArray[np.int64] | None

    @classmethod
    def of(cls, sizes: NDArray[np.int64], header: int, width: int) -> Index:
        """The index of entries of these sizes (bytes, [J]) with a header each and numbers of a width.

        Raises
        ------
        ValueError
            A size is impossible.
        """
        counts, rest = np.divmod(sizes - header, width)
        if rest.any() or (counts < 0).any():
            raise ValueError(f"a list of {int(sizes[(rest != 0) | (counts < 0)][0])} bytes is impossible")
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if not header:
            return cls(offsets, counts.astype(">i4"), width, None, None)
        unit = 1 if width == 1 else 2
        ends = np.cumsum(sizes)
        starts = (ends - sizes)[:, None] // unit
        keep = np.ones(int(ends[-1]) // unit if len(ends) else 0, np.bool_)
        keep[starts + np.arange(header // unit)] = False
        places = starts + np.arange(_COUNT_AT // unit, (_COUNT_AT + _COUNT_BYTES) // unit)
        return cls(offsets, counts.astype(">i4"), unit, keep, places)

    def check(self, raw: NDArray[np.uint8]) -> None:
        """ValueError when the header of a list says another number of elements than its size."""
        if self.count_units is not None:
            units = raw.view(f"u{self.unit}")
            if units[self.count_units].tobytes() != self.counts.tobytes():
                raise ValueError("the header of a list says another number of elements than its size")

    def numbers(self, raw: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The numbers of all entries, in native byte order."""
        if self.keep is not None:
            raw = raw.view(f"u{self.unit}")[self.keep]
        return raw.view(dtype).astype(dtype.newbyteorder("="))


@dataclass(frozen=True)
class PackedLists:
    """Lists as they lie in the file; their numbers are unpacked at each use, so that few are in memory at a time."""

    raw: NDArray[np.uint8]
    index: Index
    dtype: np.dtype[Any]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where the list of each jet begins, [J+1]."""
        return self.index.offsets

    @property
    def values(self) -> NDArray[Any]:
        """All numbers, [S]."""
        return self.index.numbers(self.raw, self.dtype)


class Indices:
    """The indices of a range of entries, each made once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, bytes], Index] = {}

    def of(self, sizes: NDArray[np.int64], layout: Layout) -> Index:
        """The index of entries of these sizes."""
        header, width = layout.header or 0, layout.dtype.itemsize
        key = header, width, sizes.tobytes()
        if key not in self._known:
            self._known[key] = Index.of(sizes, header, width)
        return self._known[key]
