"""Libraries in C that the installation builds beside their sources, where it finds a compiler."""

from __future__ import annotations

import ctypes
import logging
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

logger = logging.getLogger(__name__)


def load(path: Path, function: str) -> ctypes.CDLL | None:
    """A library that has this function; None if this machine cannot load it."""
    try:
        library = ctypes.CDLL(str(path))
        getattr(library, function)
    except (OSError, AttributeError) as error:
        logger.debug("'%s' is not used: %s", path, error)
        return None
    return library


def built(source: Path) -> Path | None:
    """The library `_<name>` that was built of `<name>.c`, if one was."""
    paths = (source.with_name(f"_{source.stem}{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.exists()), None)
