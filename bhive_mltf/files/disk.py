"""A disk that does not take what is written to it, as an error that says so."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bhive_mltf.errors import DataError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EFBIG: "the disk takes no file of that size",
}


@contextmanager
def writing(directory: str | Path) -> Iterator[None]:
    """Turn such an OSError into a DataError that names the file, or the directory; any other stays what it is."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0)
        if reason is None:
            raise
        free = _free(Path(directory)) if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise DataError(
            f"'{error.filename or directory}' cannot be written ({reason}): make room or give another place, then type "
            f"the command again{free}"
        ) from error


def _free(place: Path) -> str:
    """What is left on the disk of a place that need not exist."""
    with contextlib.suppress(OSError):
        existing = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
        return f"; {shutil.disk_usage(existing).free / 1e6:.1f} MB are free there, and it takes more"
    return ""
