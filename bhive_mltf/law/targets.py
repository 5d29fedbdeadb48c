"""Targets that know when they are out of date."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law

from bhive_mltf.files.records import is_current

if TYPE_CHECKING:
    _Target: Any = law.LocalTarget
else:
    _Target = object


class _Derived(_Target):
    """A target made from other results; it counts as missing once one of them was made anew.

    `record` is the directory with the result's own `parameters.json`, `sources` the directories of the results that
    it was made from.
    """

    def __init__(self, path: str, *, record: str = "", sources: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self._record = record or path
        self._sources = dict(sources or {})

    def exists(self, **kwargs: Any) -> bool:
        """Present, and made from the present generation of its sources."""
        return bool(super().exists(**kwargs)) and is_current(Path(self._record), self._sources)


class DerivedFileTarget(_Derived, law.LocalFileTarget):
    """A file of a result that was made from others."""


class DerivedDirectoryTarget(_Derived, law.LocalDirectoryTarget):
    """A directory that is a result made from others."""
