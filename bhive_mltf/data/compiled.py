"""The compiled part of the loader, where it could be built at installation; all works without it, more slowly."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from bhive_mltf.files import libraries

PadJets = Callable[..., int]

_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64
SOURCE = Path(__file__).with_name("pad_jets.c")


def load(path: Path) -> PadJets | None:
    """The function `pad_jets` of a library, described in `pad_jets.c`; None if this machine cannot load it."""
    library = libraries.load(path, "pad_jets")
    if library is None:
        return None
    function = library.pad_jets
    function.restype = _NUMBER
    function.argtypes = [*[_ADDRESS] * 5, *[_NUMBER] * 2, _ADDRESS, *[_NUMBER] * 2, _ADDRESS]
    return function


def installed() -> PadJets | None:
    """The function that was built at installation, if one was."""
    path = libraries.built(SOURCE)
    return None if path is None else load(path)
