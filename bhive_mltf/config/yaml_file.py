"""One YAML file as a mapping, and where files are found by name; keys written twice are an error, not a choice."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from bhive_mltf.config.settings import shown
from bhive_mltf.errors import ConfigError
from bhive_mltf.files.text import read_text

SUFFIXES = (".yml", ".yaml")


def find_named(text: str, folders: Sequence[Path]) -> Path | None:
    """The YAML file at a path, or of a name in the first of the folders that has one; None when there is none."""
    path = Path(os.path.expandvars(text)).expanduser()
    if (len(path.parts) > 1 or path.suffix in SUFFIXES) and path.is_file():
        return path.absolute()
    names = [path.name] if path.suffix in SUFFIXES else [f"{path.name}{suffix}" for suffix in SUFFIXES]
    candidates = (folder / name for folder in folders for name in names) if len(path.parts) == 1 else ()
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def names_in(folders: Sequence[Path]) -> tuple[str, ...]:
    """The names that `find_named` knows, sorted."""
    there = (folder for folder in folders if folder.is_dir())
    return tuple(sorted({path.stem for folder in there for path in folder.iterdir() if path.suffix in SUFFIXES}))


class _Loader(yaml.SafeLoader):
    """Plain data only, every key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


@functools.lru_cache(maxsize=16)
def _parsed(text: str) -> Any:  # noqa: ANN401 - whatever YAML is
    """A text as plain data; all tasks of a command read the same few files, and the parser is slow.

    libyaml's, which is not, ends the process for a text that is nested deeply.
    """
    # builds plain data only, as yaml.safe_load does
    return yaml.load(text, _Loader)  # noqa: S506


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a config file; keys without a value are left out.

    Raises
    ------
    ConfigError
        The file cannot be read, is empty, is not YAML, or is not a mapping.
    """
    try:
        content = copy.deepcopy(_parsed(read_text(path)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"config {path}{line}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"config {path}: not valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise ConfigError(f"config {path}: cannot be read: {error.strerror}") from error
    if content is None:
        raise ConfigError(f"config {path}: the file is empty")
    if not isinstance(content, dict):
        raise ConfigError(f"config {path}: {shown(content)} is not a mapping of keys to values")
    return {str(key): value for key, value in content.items() if value is not None}
