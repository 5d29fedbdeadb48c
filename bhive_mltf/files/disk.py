"""A disk that does not take or give what it is asked for, as an error that says so."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from bhive_mltf.errors import DiskError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, the quota is used up, the limit of a file's size is reached."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the disk, or `ulimit -f`, takes no file of that size",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
}
_ROOM = "make room or give another place, then type the command again"
_ADVICE = {
    errno.EROFS: "give a place that can be written",
    errno.EACCES: "change the permissions or give another place",
    errno.EPERM: "change the permissions or give another place",
    errno.EMFILE: "raise `ulimit -n`",
}


@contextmanager
def writing(directory: str | Path, numbers: Collection[int] | None = tuple(_REASONS)) -> Iterator[None]:
    """Turn an OSError of a disk into a DiskError that names the file, or the directory; any other stays what it is.

    numbers : the `errno`s to turn; `NO_SPACE` where files are read as well, None for all, where nothing but a folder or
        a file is made.

    Raises
    ------
    DiskError : the disk is full or takes no such file, it is read-only, or the permission is denied.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        if numbers is not None and error.errno not in numbers:
            raise
        raise cannot_write(error.filename or directory, error) from error


def cannot_write(path: str | Path, error: OSError, what: str = "") -> DiskError:
    """The error to raise where `path` cannot be written.

    what : what it is, before its name: "the checkpoint".
    """
    number = error.errno or 0
    advice = _ROOM if number in NO_SPACE else _ADVICE.get(number, "look at the disk, then type the command again")
    free = _free(Path(path)) if number in (errno.ENOSPC, errno.EDQUOT) else ""
    named = f"{what} '{path}'" if what else f"'{path}'"
    return DiskError(f"{named} cannot be written ({reason(error)}): {advice}{free}", number)


def reason(error: OSError) -> str:
    """What the system says, in words."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error)


def is_out_of_space(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is a disk without room for more."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return True
        error = error.__cause__ or error.__context__
    return False


def refusal(directory: Path, n_bytes: int) -> OSError | None:
    """Try to write so many bytes to a file in a folder; the error of the disk, None when it takes them.

    For writers in C that fail without saying why.
    """
    probe = directory / f".{os.getpid()}-{secrets.token_hex(4)}.probe"
    try:
        with probe.open("wb") as file:
            for start in range(0, n_bytes, 2**20):
                file.write(bytes(min(2**20, n_bytes - start)))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def _free(place: Path) -> str:
    """What is left on the disk of a place that need not exist."""
    with contextlib.suppress(OSError, StopIteration):
        existing = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
        return f"; {shutil.disk_usage(existing).free / 1e6:.1f} MB are free there, and it takes more"
    return ""
