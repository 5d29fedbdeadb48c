"""Uploaded archives on disk, by the SHA-256 of their uncompressed bytes."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from bhive_mltf.gateway import faults
from bhive_mltf.gateway.errors import ArchiveError
from bhive_mltf.gateway.settings import Limits

DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_AT_ONCE: Final = 2**20
_LEFT_S: Final = 24 * 3600.0


class TooLargeError(ArchiveError):
    """More bytes than a project may have."""


def path_of(spool: Path, digest: str) -> Path:
    """Where the archive with this digest lies."""
    return spool / "blobs" / digest[:2] / digest


def remove_left(folder: Path) -> None:
    """Remove what processes that were killed have left of their uploads; no upload takes a day."""
    before = time.time() - _LEFT_S
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()


async def receive(chunks: AsyncIterator[bytes], path: Path, limits: Limits, *, gzipped: bool) -> str:
    """Write an upload to `path`, uncompressed, in constant memory; its digest.

    Raises
    ------
    TooLargeError : it has more bytes than a project may have, or more than its compressed size allows.
    ArchiveError : it is not gzip although it says so.
    """
    digest, sent, total = hashlib.sha256(), 0, 0
    unzip = zlib.decompressobj(wbits=31) if gzipped else None
    with path.open("xb") as file:
        async for chunk in chunks:
            sent += len(chunk)
            for part in _parts(chunk, unzip):
                total += len(part)
                if total > limits.archive_bytes or (gzipped and total > limits.ratio * max(sent, 10_000)):
                    raise TooLargeError(
                        f"the project has more than {limits.archive_bytes:,} bytes, or is compressed by more than"
                        f" a factor of {limits.ratio}: leave data out of it"
                    )
                digest.update(part)
                file.write(part)
            faults.point("in_upload")
    if unzip is not None and (not unzip.eof or unzip.unused_data):
        raise ArchiveError("the upload is no whole gzip stream")
    return digest.hexdigest()


def _parts(chunk: bytes, unzip: zlib._Decompress | None) -> Iterator[bytes]:
    if unzip is None:
        yield chunk
        return
    try:
        while chunk and not unzip.eof:
            yield unzip.decompress(chunk, _AT_ONCE)
            chunk = unzip.unconsumed_tail
    except zlib.error:
        raise ArchiveError("the upload is not gzip, although it says so") from None
