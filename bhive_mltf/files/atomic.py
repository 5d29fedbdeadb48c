"""Writing so that a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replace_file(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, on error it is removed.

    durable : False leaves it to the system when the content reaches the disk: for what a power cut may damage.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        # A write that fails does not say of what.
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


class _Output(io.BufferedWriter):
    """Remembers the first error of the disk, which a writer in C may have replaced by one of its own."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise


@contextmanager
def open_replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to; on success it takes the place of `path`, on error it is removed.

    For `torch.save` and the like: written to by name, a full disk is a RuntimeError about an unexpected position.

    Raises
    ------
    OSError : the disk does not take it, whatever the writer made of that.
    """
    with replace_file(path) as temporary, _Output(io.FileIO(temporary, "w")) as file:
        try:
            yield file
        except Exception as error:
            if file.failure is None or isinstance(error, OSError):
                raise
            raise file.failure from error


@contextmanager
def replace_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success it takes the place of `path`, on error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            old = _temporary(path)
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as a whole."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class _WriteOnly:
    """A file that numpy takes for none of the system: to those it writes by C, and its errors do not say why."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write


def write_array(path: str | Path, values: Any) -> None:  # noqa: ANN401 - any array
    """Write an array to `path` as npy, as a whole.

    Raises
    ------
    OSError : the disk does not take it, with its `errno`.
    """
    import numpy as np

    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.save(_WriteOnly(file), values, allow_pickle=False)


def write_json(path: str | Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write `value` to `path` as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")
