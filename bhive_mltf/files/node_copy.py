"""Copies of folders on a node's own disk, for the processes of one job there.

Who makes them names their place in an environment variable; who opens a folder asks for its copy.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import xxhash

VARIABLE = "BHIVE_MLTF_NODE_COPIES"
_PIECE_BYTES = 2**24
logger = logging.getLogger(__name__)


def find(source: Path) -> Path:
    """The copy of a folder on this node; the folder itself where there is none."""
    place = os.environ.get(VARIABLE)
    if not place or not (copy := _of(source, Path(os.path.expandvars(place)))).is_dir():
        return source
    logger.info("reading %s from its copy in %s", source, copy)
    return copy


def make(source: Path, place: Path) -> int:
    """Copy the files of a folder, not its subfolders, and read them back; the bytes copied.

    A copy appears as a whole or not at all.

    Raises
    ------
    OSError : a file cannot be read or written, there is no room, or a copy differs from what was read.
    """
    files = [path for path in sorted(source.iterdir()) if path.is_file() and not path.name.startswith(".")]
    size = sum(path.stat().st_size for path in files)
    copy = _of(source, place)
    unfinished = copy.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, mode=0o700)
    if size > (free := shutil.disk_usage(place).free):
        raise OSError(f"{size / 1e9:.2f} GB do not fit into {place}, which has {free / 1e9:.2f} GB left")
    for path in files:
        _copy(path, unfinished / path.name)
    unfinished.rename(copy)
    return size


def _of(source: Path, place: Path) -> Path:
    return place / hashlib.blake2b(str(source.absolute()).encode(), digest_size=8).hexdigest()


def _copy(source: Path, target: Path) -> None:
    read = xxhash.xxh3_64()
    with target.open("wb") as copy:
        for piece in _pieces(source):
            read.update(piece)
            copy.write(piece)
    written = xxhash.xxh3_64()
    for piece in _pieces(target):
        written.update(piece)
    if written.digest() != read.digest():
        raise OSError(f"{target} is not what was read from {source}")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
