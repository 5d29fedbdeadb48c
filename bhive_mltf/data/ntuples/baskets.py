"""Baskets of simple branches, read straight from the mapped file: each is decompressed once.

Simple: one number per entry, or a list of numbers per entry (`std::vector` of numbers, or an array with a counter).
Whatever else there is stays with uproot, which also reads the metadata and brings the codecs.

Format: ROOT's TKey and TBasket, as uproot reads them; big-endian. A basket ends with the byte offset of each entry.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import uproot
import xxhash
from numpy.typing import NDArray

_KEY = struct.Struct(">ihiIhh")
_BASKET = struct.Struct(">Hiiii")
_BLOCK_HEADER = 9
_LZ4_CHECKSUM = 8
_CODECS: Mapping[bytes, Any] = {
    b"ZS": uproot.ZSTD(1),
    b"ZL": uproot.ZLIB(1),
    b"XZ": uproot.LZMA(1),
    b"L4": uproot.LZ4(1),
}


@dataclass(frozen=True)
class Layout:
    """How the entries of a simple branch lie in its baskets.

    dtype : of one number, big-endian.
    header : bytes before the numbers of each list; None for one number per entry.
    """

    dtype: np.dtype[Any]
    header: int | None


@dataclass(frozen=True)
class Basket:
    """Entries [start, stop): their bytes; for lists, where each entry begins, [n + 1], and its size in bytes, [n]."""

    start: int
    stop: int
    data: NDArray[np.uint8]
    offsets: NDArray[np.int64] | None = None
    sizes: NDArray[np.int64] | None = None


def simple_layout(branch: Any) -> Layout | None:  # noqa: ANN401 - uproot
    """The layout of a branch, None when it is not simple."""
    interpretation = branch.interpretation
    header = None
    if isinstance(interpretation, uproot.AsJagged):
        header = int(interpretation.header_bytes)
        interpretation = interpretation.content
    if type(interpretation) is not uproot.AsDtype or interpretation.inner_shape or header not in (None, 0, 10):
        return None
    dtype = interpretation.from_dtype
    if dtype.names or dtype.newbyteorder("=") != interpretation.to_dtype or branch.embedded_baskets:
        return None
    return Layout(dtype, header)


class BranchReader:
    """Bytes of ranges of entries of one branch; keeps the last basket for the range that follows.

    Parameters
    ----------
    content : the file.
    branch : uproot's branch, of the given layout.
    edges : first entry of each basket, and the number of entries.
    """

    def __init__(
        self,
        content: memoryview,
        branch: Any,  # noqa: ANN401 - uproot
        layout: Layout,
        edges: Sequence[int],
    ) -> None:
        self.layout = layout
        self.edges = edges
        self._content = content
        self._seeks = branch.member("fBasketSeek").tolist()
        self._sizes = branch.member("fBasketBytes").tolist()
        self._last: Basket | None = None

    def has_offsets(self) -> bool:
        """True unless the sizes of the lists stand in another branch only."""
        if len(self.edges) < 2:
            return True
        key_length, size, _, last = self._header(0)
        return last - key_length != size

    def read(self, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The bytes of the entries [start, stop) and, for lists, the size in bytes of each entry.

        Raises
        ------
        ValueError
            A basket is not what the tree says.
        """
        pieces, sizes = [], []
        for number in range(bisect.bisect_right(self.edges, start) - 1, len(self.edges) - 1):
            if self.edges[number] >= stop:
                break
            basket = self._basket(number)
            low, high = max(start, basket.start) - basket.start, min(stop, basket.stop) - basket.start
            if basket.offsets is None or basket.sizes is None:
                width = self.layout.dtype.itemsize
                pieces.append(basket.data[low * width : high * width])
            else:
                pieces.append(basket.data[basket.offsets[low] : basket.offsets[high]])
                sizes.append(basket.sizes[low:high])
        return _joined(pieces, np.uint8), _joined(sizes, np.int64)

    def _basket(self, number: int) -> Basket:
        start = self.edges[number]
        if self._last is None or self._last.start != start:
            self._last = None  # not both in memory
            self._last = self._load(number, start, self.edges[number + 1])
        return self._last

    def _header(self, number: int) -> tuple[int, int, int, int]:
        """Length of the key, uncompressed bytes, entries, and the end of the data counted from the key."""
        seek = self._seeks[number]
        total, _, size, _, key_length, _ = _KEY.unpack_from(self._content, seek)
        *_, n_entries, last = _BASKET.unpack_from(self._content, seek + key_length - _BASKET.size - 1)
        if total != self._sizes[number] or not key_length <= last <= key_length + size:
            raise ValueError(f"the header of basket {number} is damaged")
        return key_length, size, n_entries, last

    def _load(self, number: int, start: int, stop: int) -> Basket:
        key_length, size, n_entries, last = self._header(number)
        if n_entries != stop - start:
            raise ValueError(f"basket {number} has {n_entries} entries instead of {stop - start}")
        seek = self._seeks[number]
        payload = self._content[seek + key_length : seek + self._sizes[number]]
        if len(payload) != self._sizes[number] - key_length:
            raise ValueError(f"basket {number} is cut off")
        whole = np.frombuffer(bytes(payload) if len(payload) == size else decompress(payload, size), np.uint8)
        border = last - key_length
        if self.layout.header is None:
            if border != n_entries * self.layout.dtype.itemsize:
                raise ValueError(f"basket {number} has {border} bytes for {n_entries} entries")
            return Basket(start, stop, whole[:border])
        offsets = _offsets(whole[border:], n_entries, key_length, border)
        sizes = offsets[1:] - offsets[:-1]
        if offsets[0] != 0 or sizes.min() < 0:
            raise ValueError(f"the offsets of basket {number} are damaged")
        return Basket(start, stop, whole[:border], offsets, sizes)


def _joined(pieces: list[NDArray[Any]], dtype: type[Any]) -> NDArray[Any]:
    return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, dtype), *pieces])


def _offsets(trailer: NDArray[np.uint8], n_entries: int, key_length: int, border: int) -> NDArray[np.int64]:
    """Where the entries begin and the last one ends, int64 [n_entries + 1]."""
    if len(trailer) != 4 * (n_entries + 2):
        raise ValueError(f"a basket of {n_entries} entries has {len(trailer)} bytes of offsets")
    offsets = trailer.view(">i4")[1:].astype(np.int64)
    offsets -= key_length
    offsets[-1] = border
    return offsets


def decompress(payload: memoryview, size: int) -> bytes:
    """The `size` bytes that ROOT's compressed blocks hold.

    Raises
    ------
    ValueError
        Unknown compression, a wrong checksum (LZ4), or another size. Codecs raise errors of their own.
    """
    blocks = []
    at = filled = 0
    while at < len(payload):
        kind = bytes(payload[at : at + 2])
        packed = int.from_bytes(payload[at + 3 : at + 6], "little")
        unpacked = int.from_bytes(payload[at + 6 : at + _BLOCK_HEADER], "little")
        block = payload[at + _BLOCK_HEADER : at + _BLOCK_HEADER + packed]
        at += _BLOCK_HEADER + packed
        if kind not in _CODECS or len(block) != packed:
            raise ValueError(f"a block of {packed} bytes, compressed by {kind!r}, is damaged")
        if kind == b"L4":
            checksum, block = bytes(block[:_LZ4_CHECKSUM]), block[_LZ4_CHECKSUM:]
            if xxhash.xxh64_digest(block) != checksum:
                raise ValueError("the checksum of an LZ4 block is wrong")
        blocks.append(_CODECS[kind].decompress(block, unpacked))
        if len(blocks[-1]) != unpacked:
            raise ValueError(f"a block has {len(blocks[-1])} bytes instead of {unpacked}")
        filled += unpacked
    if filled != size:
        raise ValueError(f"a basket has {filled} bytes instead of {size}")
    return blocks[0] if len(blocks) == 1 else b"".join(map(bytes, blocks))
