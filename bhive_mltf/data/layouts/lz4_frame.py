"""Random access to LZ4 frames of any size, without holding them.

Format: "LZ4 Frame Format Description" 1.6.3. A frame is a header, blocks of at most 64 KiB to 4 MiB and an end mark.
Blocks may refer to the 64 KiB before them, so reading starts at seek points, which keep that window.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import xxhash
from numpy.typing import NDArray

from bhive_mltf.errors import CorruptFileError
from bhive_mltf.files import mapping

_MAGIC = 0x184D2204
_WINDOW = 65_536
_RAW = 0x8000_0000


@dataclass(frozen=True)
class FrameHeader:
    """What the header of a frame says; sizes in bytes."""

    size: int
    max_block: int
    linked: bool
    block_checksums: bool
    content_checksum: bool
    content_size: int | None


@dataclass(frozen=True)
class Block:
    """One decoded block: place in the file, place in the content, the window before it, content."""

    position: int
    offset: int
    window: bytes
    content: bytes


BLOCK_CHECK = np.dtype([("position", "<i8"), ("checksum", "<u8")])


def seek_point_type(linked: bool) -> np.dtype[np.void]:
    """Type of a seek point: content offset, file position, window of linked blocks with its size."""
    fields: list[Any] = [("offset", "<i8"), ("position", "<i8")]
    if linked:
        fields += [("size", "<u4"), ("window", "u1", (_WINDOW,))]
    return np.dtype(fields)


class FrameReader:
    """One frame in a file.

    Parameters
    ----------
    path : of the file.
    points : seek points of the frame, as `SeekPoints` collects them; without them each read starts at the front.
    checks : one row of `BLOCK_CHECK` per block, for frames without checksums of their own; blocks are held against it.

    Raises
    ------
    CorruptFileError
        Not a whole LZ4 frame; also from all methods.
    """

    def __init__(
        self, path: Path, points: NDArray[np.void] | None = None, checks: NDArray[np.void] | None = None
    ) -> None:
        self._path = path
        self._points = points
        self._checks = checks
        try:
            self._data = mapping.FileBytes(path)
        except OSError as error:
            raise mapping.cannot_read(path, error, "restore it from where it came from") from error
        self.header = self._read_header()

    def _broken(self, reason: str) -> CorruptFileError:
        return CorruptFileError(
            f"'{self._path}' is not a whole LZ4 frame ({reason}): restore it from where it came from, or build the "
            "training set again"
        )

    def _take(self, position: int, size: int) -> bytes:
        if position + size > len(self._data):
            raise self._broken(f"it ends after {len(self._data)} bytes")
        try:
            return self._data[position : position + size]
        except OSError as error:
            raise mapping.cannot_read(self._path, error, "restore it from where it came from") from error

    def _integer(self, position: int) -> int:
        return int(struct.unpack("<I", self._take(position, 4))[0])

    def _read_header(self) -> FrameHeader:
        if self._integer(0) != _MAGIC:
            raise self._broken("the magic number is missing")
        flags, descriptor = self._take(4, 2)
        size_code = (descriptor >> 4) & 7
        if flags >> 6 != 1 or size_code < 4 or flags & 1:
            raise self._broken("its header is of an unknown kind")
        has_size = bool(flags & 8)
        end = 6 + (8 if has_size else 0)
        if self._take(end, 1)[0] != (xxhash.xxh32_intdigest(self._take(4, end - 4)) >> 8) & 0xFF:
            raise self._broken("the checksum of its header is wrong")
        return FrameHeader(
            size=end + 1,
            max_block=1 << (8 + 2 * size_code),
            linked=not flags & 32,
            block_checksums=bool(flags & 16),
            content_checksum=bool(flags & 4),
            content_size=struct.unpack("<Q", self._take(6, 8))[0] if has_size else None,
        )

    def _blocks_from(self, block: Block) -> Iterator[Block]:
        """Decoded blocks from a place on; the last has no content and stands at the end mark."""
        position, offset, window = block.position, block.offset, block.window
        while word := self._integer(position):
            size = word & ~_RAW
            stored = self._take(position + 4, size)
            after = position + 4 + size + (4 if self.header.block_checksums else 0)
            self._check(position, stored)
            content = stored if word & _RAW else self._decode(stored, window)
            yield Block(position, offset, window, content)
            position, offset = after, offset + len(content)
            if self.header.linked:
                window = content[-_WINDOW:] if len(content) >= _WINDOW else (window + content)[-_WINDOW:]
        yield Block(position, offset, window, b"")

    def _check(self, position: int, stored: bytes) -> None:
        good = True
        if self.header.block_checksums:
            good = self._integer(position + 4 + len(stored)) == xxhash.xxh32_intdigest(stored)
        elif self._checks is not None:
            place = int(np.searchsorted(self._checks["position"], position))
            expected = (position, self.block_checksum(position))
            good = place < len(self._checks) and self._checks[place].item() == expected
        if not good:
            raise self._broken(f"the checksum of the block at byte {position} is wrong")

    def block_checksum(self, position: int) -> int:
        """XXH3-64 of the block at this place of the file, its size word included."""
        size = self._integer(position) & ~_RAW
        return int(xxhash.xxh3_64_intdigest(self._take(position, 4 + size)))

    def _decode(self, stored: bytes, window: bytes) -> bytes:
        try:
            options = {"dict": window} if window else {}
            content: bytes = lz4.block.decompress(stored, uncompressed_size=self.header.max_block, **options)
        except lz4.block.LZ4BlockError as error:
            raise self._broken(str(error)) from error
        return content

    def blocks(self) -> Iterator[Block]:
        """All blocks in order, checked against the checksum and the size of the content."""
        checksum = xxhash.xxh32()
        for block in self._blocks_from(Block(self.header.size, 0, b"", b"")):
            if block.content:
                checksum.update(block.content)
                yield block
            else:
                if self.header.content_size not in (None, block.offset):
                    raise self._broken(f"{block.offset} bytes of content, {self.header.content_size} announced")
                if self.header.content_checksum and self._integer(block.position + 4) != checksum.intdigest():
                    raise self._broken("the checksum of its content is wrong")

    def read(self, start: int, stop: int) -> bytearray:
        """The bytes [start, stop) of the content."""
        result = bytearray(stop - start)
        for block in self._blocks_from(self._before(start)):
            low = max(start - block.offset, 0)
            high = min(stop - block.offset, len(block.content))
            if high > low:
                target = block.offset + low - start
                result[target : target + high - low] = block.content[low:high]
            if block.offset + len(block.content) >= stop:
                return result
        raise self._broken(f"its content ends before byte {stop}")

    def _before(self, start: int) -> Block:
        if self._points is None or not len(self._points):
            return Block(self.header.size, 0, b"", b"")
        place = max(0, int(np.searchsorted(self._points["offset"], start, side="right")) - 1)
        point = self._points[place]
        window = bytes(point["window"][: point["size"]]) if self.header.linked else b""
        return Block(int(point["position"]), int(point["offset"]), window, b"")


class SeekPoints:
    """Collects seek points at least `spacing` bytes of content apart."""

    def __init__(self, linked: bool, spacing: int = 8 << 20) -> None:
        self._linked = linked
        self._spacing = spacing
        self._points: list[NDArray[np.void]] = []
        self._next = 0

    def add(self, block: Block) -> None:
        """Consider a block, in the order of the frame."""
        if block.offset < self._next:
            return
        point = np.zeros((), seek_point_type(self._linked))
        point["offset"], point["position"] = block.offset, block.position
        if self._linked:
            point["size"] = len(block.window)
            point["window"][: len(block.window)] = np.frombuffer(block.window, np.uint8)
        self._points.append(point)
        self._next = block.offset + self._spacing

    def array(self) -> NDArray[np.void]:
        """All points, ascending."""
        return np.array(self._points, seek_point_type(self._linked))
