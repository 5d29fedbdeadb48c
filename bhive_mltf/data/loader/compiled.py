"""The compiled parts of the loader, where they could be built at installation; all works without, more slowly."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bhive_mltf.files import libraries

Compiled = Callable[..., int]

_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "pad_jets": (*[_ADDRESS] * 5, *[_NUMBER] * 2, _ADDRESS, *[_NUMBER] * 2, _ADDRESS),
    "deal": (_ADDRESS, *[_NUMBER] * 2, *[_ADDRESS] * 3),
}


def source(name: str) -> Path:
    """Where the function `name` is written and described."""
    return Path(__file__).with_name(f"{name}.c")


def load(path: Path, name: str) -> Compiled | None:
    """The function `name` of a library; None if this machine cannot load it."""
    library = libraries.load(path, name)
    if library is None:
        return None
    function: Compiled = getattr(library, name)
    function.restype, function.argtypes = _NUMBER, _ARGUMENTS[name]  # type: ignore[attr-defined]
    return function


def installed(name: str) -> Compiled | None:
    """The function that was built at installation, if one was."""
    path = libraries.built(source(name))
    return None if path is None else load(path, name)
