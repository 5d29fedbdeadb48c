"""Bytes of files that are read in place: without shared mappings, and so that a bad block is an error.

Where a page of a mapped file cannot be read, the process that touches it is killed (SIGBUS) and no word is said of the
file. What is read for the first time is therefore read by a system call, which fails with an OSError, and the map is
used for what was read before. Maps are private: some file systems have no others.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path
from typing import Any, cast

import numpy as np

from bhive_mltf.errors import CorruptFileError, DataError, DiskError
from bhive_mltf.files import disk

_PIECE_BYTES = 1 << 22
_POPULATE_READ = 22  # Linux 5.14; not in Python's mmap
_EHWPOISON = 133  # not in Python's errno


def cannot_read(path: str | Path, error: Exception, advice: str) -> DataError:
    """The error to raise where a file cannot be read.

    advice : what to do about a damaged file.

    Returns
    -------
    A CorruptFileError for what the file itself shows; a DiskError for what the machine does not do.
    """
    number = error.errno or 0 if isinstance(error, OSError) else 0
    # messages of libraries can have several lines
    reason = os.strerror(number) if number else " ".join(str(error).split())
    if number in disk.OF_THE_MACHINE:
        todo = "raise `ulimit -n`" if number == errno.EMFILE else "look at the disk and the permissions"
        return DiskError(f"'{path}' cannot be read: {reason}: {todo}, then type the command again", number)
    return CorruptFileError(f"'{path}' cannot be read: {reason}: {advice}")


class FileBytes:
    """The bytes of a file, each slice read by a system call. Threads and forked processes may share it.

    Raises
    ------
    OSError : the file cannot be opened; from slices too, where it cannot be read or has become shorter.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._handle).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        return _pread(self._handle, start, stop - start, self.path)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._handle)


class NotedReads(FileBytes):
    """A file for readers that read and seek, which notes what they read.

    failure : the last read that failed; readers in C may make something else of it.
    """

    closed = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._position = 0
        self.failure: OSError | None = None
        self._noted: list[tuple[int, int]] = []

    def read(self, size: int = -1) -> bytes:
        """So many bytes from the position on; -1: all that is left."""
        try:
            found = self[self._position : len(self) if size < 0 else self._position + size]
        except OSError as error:
            self.failure = error
            raise
        self._noted.append((self._position, len(found)))
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As that of any file."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self)}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def close(self) -> None:
        """The file is closed with its last reference."""

    def taken(self) -> list[tuple[int, int]]:
        """First byte and length of the reads since the last call."""
        noted, self._noted = self._noted, []
        return noted


def _pread(handle: int, start: int, size: int, path: Path) -> bytes:
    found = bytearray()
    while len(found) < size:
        piece = os.pread(handle, size - len(found), start + len(found))
        if not piece:
            raise OSError(errno.EIO, "it has become shorter while it was read", str(path))
        found += piece
    return bytes(found)


def open_map(path: Path) -> mmap.mmap:
    """A private, read-only map of a file.

    Raises
    ------
    OSError : it cannot be opened or mapped.
    ValueError : it is empty.
    """
    with path.open("rb") as handle:
        return mmap.mmap(handle.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)


def populate(file: mmap.mmap, path: Path, start: int, size: int, advice: str) -> None:
    """Have a part of a mapped file read into memory now, in one go, before it is touched.

    start, size : in bytes; what lies beyond the end of the file is left out.
    advice : what to do about a damaged file.

    Raises
    ------
    CorruptFileError, DiskError : it cannot be read, so that touching it would end the process.
    """
    begin = start // mmap.PAGESIZE * mmap.PAGESIZE
    end = min(start + size, len(file))
    if end <= begin:
        return
    try:
        file.madvise(_POPULATE_READ, begin, end - begin)
    except OSError as error:
        if error.errno in (errno.EFAULT, _EHWPOISON):
            raise cannot_read(path, OSError(errno.EIO, os.strerror(errno.EIO)), advice) from error
        # a system without this advice (Linux before 5.14, macOS)
        _read_through(path, begin, end, advice)


def _read_through(path: Path, begin: int, end: int, advice: str) -> None:
    """Have a part of a file in the system's memory, by reading it."""
    try:
        with path.open("rb", buffering=0) as file:
            for start in range(begin, end, _PIECE_BYTES):
                _pread(file.fileno(), start, min(_PIECE_BYTES, end - start), path)
    except OSError as error:
        raise cannot_read(path, error, advice) from error


def load_array(path: Path, advice: str) -> np.memmap[Any, Any]:
    """An array of a `.npy` file, mapped and read-only; all of it has been read once.

    Through the map: where a file system keeps nothing of what system calls read, the map reads it once more.

    advice : what to do about a damaged file.

    Raises
    ------
    OSError, ValueError, EOFError : it cannot be opened, or is not such a file.
    CorruptFileError, DiskError : a part of it cannot be read.
    """
    array: np.memmap[Any, Any] = np.load(path, mmap_mode="c")
    array.flags.writeable = False
    populate(map_of(array), path, 0, path.stat().st_size, advice)
    return array


def map_of(array: np.memmap[Any, Any]) -> mmap.mmap:
    """The map that an array of `load_array` lies in."""
    return cast("mmap.mmap", array.base)
