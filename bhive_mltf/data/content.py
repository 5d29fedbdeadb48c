"""What identifies a source file: its content, not its path."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import xxhash

from bhive_mltf.errors import CorruptFileError, FilelistError

_PIECE_BYTES = 16 << 20


def content_id(path: str | Path) -> int:
    """64-bit XXH3 of the bytes of a local file.

    Raises
    ------
    CorruptFileError
        The file cannot be read, or is empty.
    """
    return int(file_hash(path).intdigest())


def file_checksum(path: str | Path) -> str:
    """XXH3-64 of a file, as 16 hexadecimal digits."""
    return str(file_hash(path).hexdigest())


def file_hash(path: str | Path) -> xxhash.xxh3_64:
    """XXH3-64 over the bytes of a local file, read piece by piece."""
    state = xxhash.xxh3_64()
    try:
        with Path(path).open("rb") as handle:
            if os.fstat(handle.fileno()).st_size == 0:
                raise CorruptFileError(f"the file '{path}' is empty: remove it from the list, or pass --skip-bad-files")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view, memoryview(view) as content:
                for start in range(0, len(content), _PIECE_BYTES):
                    state.update(content[start : start + _PIECE_BYTES])
    except OSError as error:
        raise CorruptFileError(f"the file '{path}' cannot be read ({error.strerror or error})") from error
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
