"""A disk that does not take or give what it is asked for, as an error that says so."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from bhive_mltf.errors import DiskError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, the quota is used up, the limit of a file's size is reached."""

# What a machine or its file server says to those who use a file, whatever they do with it.
_OF_ANY_USE = frozenset(
    {errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOTCONN, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT}
)
_TROUBLE = frozenset({*NO_SPACE, *_OF_ANY_USE, errno.EIO, errno.ENOLCK, errno.ENXIO, errno.EROFS})
_NETWORK = (
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
)
OF_THE_MACHINE = frozenset({*_OF_ANY_USE, *_NETWORK, errno.EAGAIN, errno.ENOMEM})
"""What a read fails with, whatever the file is like."""

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


@contextlib.contextmanager
def writing(directory: str | Path, *, everything: bool = False, reads: bool = False) -> Iterator[None]:
    """Turn an OSError of a disk into a DiskError that names the file, or the directory; any other stays what it is.

    everything : turn any OSError: where nothing but a folder or a file is made.
    reads : files are read as well.

    Raises
    ------
    DiskError : the disk is full or takes no such file, it is read-only, the permission is denied, or it fails.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        if not (everything or is_trouble(error)):
            raise
        written = everything or error.errno in _REASONS
        only_written = error.errno in (*NO_SPACE, errno.EROFS)
        tell = cannot_write if only_written or (written and not reads) else cannot_use
        raise tell(error.filename or directory, error) from error


def is_trouble(error: BaseException) -> bool:
    """Whether an error is one of a disk or file server, and not of the program that uses it."""
    return isinstance(error, OSError) and error.errno in _TROUBLE


def cannot_use(path: str | Path, error: OSError) -> DiskError:
    """The error to raise where something of `path` cannot be read or written, and it is not known which."""
    if error.errno in NO_SPACE:
        return cannot_write(path, error)
    number = error.errno or 0
    advice = _ADVICE.get(number, "look at the disk, then type the command again")
    return DiskError(f"'{path}' cannot be read or written ({reason(error)}): {advice}", number)


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
    if error.errno in _REASONS:
        return _REASONS[error.errno]
    # libraries have words of their own for the same
    return os.strerror(error.errno) if error.errno else str(error)


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
