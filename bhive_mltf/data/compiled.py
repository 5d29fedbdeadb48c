"""The compiled part of the loader, where it could be built at installation; all works without it, more slowly."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

logger = logging.getLogger(__name__)

PadJets = Callable[..., int]

_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64
SOURCE = Path(__file__).with_name("pad_jets.c")


def load(path: Path) -> PadJets | None:
    """The function `pad_jets` of a library, described in `pad_jets.c`; None if this machine cannot load it."""
    try:
        function = ctypes.CDLL(str(path)).pad_jets
    except (OSError, AttributeError) as error:
        logger.debug("'%s' is not used: %s", path, error)
        return None
    function.restype = _NUMBER
    function.argtypes = [*[_ADDRESS] * 5, *[_NUMBER] * 2, _ADDRESS, *[_NUMBER] * 2, _ADDRESS]
    return function


def installed() -> PadJets | None:
    """The function that was built at installation, if one was."""
    paths = (SOURCE.with_name(f"_pad_jets{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((load(path) for path in paths if path.exists()), None)
