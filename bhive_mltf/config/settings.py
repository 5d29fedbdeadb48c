"""Settings of a config as read from YAML, each with the file that it stands in; typed access with clear errors."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bhive_mltf.errors import ConfigError, UnknownKeyError, nearest

T = TypeVar("T", bound=str)
C = TypeVar("C", list[Any], dict[Any, Any])

# Aliases can make a small YAML file a huge object: messages show only its outside.
_REPR = reprlib.Repr()
_REPR.maxlevel = 2


def shown(value: object) -> str:
    """A short form of any YAML value for a message."""
    return _REPR.repr(value)


def number(value: object, where: str) -> float:
    """A finite number; text such as 1e-3, which YAML 1.1 does not take for a number, counts."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(f"{where}: {shown(value)} is not a number")
    try:
        result = float(value)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: {shown(value)} is not a number") from error
    if not math.isfinite(result):
        raise ConfigError(f"{where}: {shown(value)} is not finite")
    return result


def name(value: object, where: str) -> str:
    """Text that can name a branch, a label or a process."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {shown(value)} is not a name; put names that YAML reads otherwise in quotes")
    return value.strip()


def check_known(value: str, valid: Iterable[str], where: str, what: str) -> None:
    """Refuse a name that is not among the valid ones, with the nearest of them."""
    valid = list(valid)
    if value not in valid:
        names = ", ".join(nearest(value, valid)) or "none"
        raise ConfigError(f"{where}: `{value}` is not {what}; nearest: {names}")


def is_one_edit(one: str, other: str) -> bool:
    """Whether one letter put in, left out, changed or swapped with its neighbour turns one name into the other."""
    short, long = sorted((one, other), key=len)
    if one == other or len(long) - len(short) > 1:
        return False
    first = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(short) < len(long):
        return short[first:] == long[first + 1 :]
    swapped = short[first + 1 : first + 2] + short[first : first + 1] + short[first + 2 :]
    return short[first + 1 :] == long[first + 1 :] or swapped == long[first:]


@dataclass(frozen=True)
class Settings:
    """Settings of one config, those of its `default.yml` included.

    origins : key -> file.
    warnings : sentences for the user, collected while reading.
    strict : refuse every key that nothing reads.
    """

    name: str
    source: str
    values: Mapping[str, Any]
    origins: Mapping[str, str]
    warnings: list[str] = field(default_factory=list)
    strict: bool = False

    def unknown(self, key: str, valid: Iterable[str], where: str, what: str) -> None:
        """A key that nothing reads: refused when it looks like a slip or all are, else ignored with a warning.

        A slip is one edit away from a valid name. Users of B-Hive keep keys of their own in their configs.

        Raises
        ------
        UnknownKeyError
            The key is taken for a slip, or `strict` holds.
        """
        valid = list(valid)
        problem = f"{where}: `{key}` is not {what}"
        names = ", ".join(nearest(key, valid))
        if self.strict or any(is_one_edit(key, name) for name in valid):
            raise UnknownKeyError(f"{problem}; nearest: {names}")
        self.warnings.append(f"{problem}: it is ignored; nearest: {names}")

    def where(self, key: str, *path: object) -> str:
        """The place of a setting, as messages name it."""
        return f"config {self.origins.get(key, self.source)}, key {'.'.join(map(str, (key, *path)))}"

    def text(self, key: str, default: str) -> str:
        """A setting that is text."""
        value = self.values.get(key)
        return default if value is None else name(value, self.where(key))

    def choice(self, key: str, valid: tuple[T, ...], default: T) -> T:
        """A setting that is one of a few words."""
        value = self.text(key, default)
        for option in valid:
            if value == option:
                return option
        raise ConfigError(f"{self.where(key)}: there is no `{value}` here; there are {', '.join(valid)}")

    def items(self, key: str) -> list[Any]:
        """A setting that is a list; empty when absent."""
        return self._container(key, list, "a list")

    def mapping(self, key: str) -> dict[Any, Any]:
        """A setting that is a mapping; empty when absent."""
        return self._container(key, dict, "a mapping")

    def _container(self, key: str, kind: type[C], what: str) -> C:
        value = self.values.get(key)
        if value is None:
            return kind()
        if not isinstance(value, kind):
            raise ConfigError(f"{self.where(key)}: {shown(value)} is not {what}")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """A list of names."""
        return tuple(name(value, self.where(key)) for value in self.items(key))

    def distinct(self, key: str) -> tuple[str, ...]:
        """A list of names, each once."""
        names = self.names(key)
        twice = [repeated for repeated, times in Counter(names).items() if times > 1]
        if twice:
            raise ConfigError(f"{self.where(key)}: listed more than once: {', '.join(twice)}")
        return names

    def count(self, key: str, most: int, default: int) -> int:
        """An integer from 0 to `most`."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise ConfigError(f"{self.where(key)}: {shown(value)} is not an integer from 0 to {most}")
        return value

    def edges(self, key: str) -> tuple[float, ...]:
        """Bin edges: two or more, ascending; none when absent."""
        edges = tuple(number(value, self.where(key)) for value in self.items(key))
        if edges and len(edges) < 2:
            raise ConfigError(f"{self.where(key)}: one edge makes no bin; give two or more")
        for low, high in itertools.pairwise(edges):
            if not low < high:
                raise ConfigError(f"{self.where(key)}: edges must ascend, but {low:g} is followed by {high:g}")
        return edges
