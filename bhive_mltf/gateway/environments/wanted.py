"""What a project asks for as its environment: `python_env.yaml`, a list of requirements, or a lock with hashes.

Only names of packages pass, with their versions, extras and markers: no addresses, no paths, no options of an installer
besides `-r` and `-c` with files of the project. All else would be another way to the network or to the builder's files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

import yaml

from bhive_mltf.gateway.errors import ProjectError
from bhive_mltf.gateway.projects import mlproject

PREPARED: Final = "profile"
"""The word for an environment that the operator has prepared: alone, or as `profile:NAME`."""
LARGEST_BYTES: Final = 2**20
_LARGEST_YAML: Final = 64 * 1024
_MOST_FILES: Final = 20
_KEYS: Final = frozenset({"python", "build_dependencies", "dependencies"})
_OF_CONDA: Final = frozenset({"name", "channels", "prefix", "variables"})
_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REQUIREMENT: Final = re.compile(
    rf"(?P<name>{_NAME})\s*(?:\[[A-Za-z0-9._,\s-]*\])?\s*(?P<version>\(?[<>=!~][^;@/\\$]*)?(?:;[^@\\$]*)?"
)
_ARCHIVE: Final = re.compile(r"\.(?:whl|zip|tar|tgz|gz|bz2|xz)$", re.IGNORECASE)
_HASH: Final = re.compile(r"\s+--hash[=\s]\s*(\S+)")
_HASH_VALUE: Final = re.compile(r"sha(?:256:[0-9a-f]{64}|384:[0-9a-f]{96}|512:[0-9a-f]{128})")
_FILE_OPTION: Final = re.compile(r"(-r|-c|--requirement|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(\S+)")
_COMMENT: Final = re.compile(r"(?:^|\s)#.*$")
_PYTHON: Final = re.compile(r"(?:==\s*)?(3\.\d+)(?:\.(?:\d+|\*))?")

Read = Callable[[str], str | None]
"""Gives the text of a file of the project, None where there is none."""


@dataclass(frozen=True)
class Wanted:
    """What to install.

    requirements : one per line; of a lock each with its hashes.
    constraints : one per line.
    is_locked : the project brings its lock along.
    python : minor version, such as `3.11`; empty: the site's choice.
    asked_python : as it was asked for.
    """

    requirements: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    is_locked: bool = False
    python: str = ""
    asked_python: str = ""


def read_wanted(name: str, read: Read) -> Wanted:
    """What a file of the project asks for.

    Raises
    ------
    ProjectError : there is no such file, or something in it cannot be; names file and line.
    """
    found = _Lines(read)
    if PurePosixPath(name).suffix in (".yaml", ".yml"):
        python = _read_python_env(name, found)
    else:
        found.add_file(name, "requirements")
        python = ""
    locked = [one for one in found.requirements if " --hash=" in one]
    if locked and len(locked) < len(found.requirements):
        bare = next(one for one in found.requirements if " --hash=" not in one)
        raise ProjectError(f"{name} has hashes for some packages and none for {bare!r}: lock all of them")
    asked = _PYTHON.fullmatch(python)
    if python and asked is None:
        raise ProjectError(f"{name} asks for Python {python[:40]!r}: write a version such as 3.11")
    minor = asked[1] if asked else ""
    return Wanted(tuple(found.requirements), tuple(found.constraints), bool(locked), minor, python)


def file_of(name: str) -> str:
    """The path of a file below the project, in its plainest spelling.

    Raises
    ------
    ProjectError : it leads out of the project.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ProjectError(f"{name[:80]!r} is no file of the project")
    return str(path)


@dataclass
class _Lines:
    """Requirements and constraints, collected from all files that name each other."""

    read: Read
    requirements: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    files: set[tuple[str, str]] = field(default_factory=set)

    def text(self, name: str) -> str:
        text = self.read(file_of(name))
        if text is None:
            raise ProjectError(f"the project has no file {name[:80]!r}")
        return text

    def add_file(self, name: str, kind: str) -> None:
        name = file_of(name)
        if (name, kind) in self.files:
            return
        self.files.add((name, kind))
        if len(self.files) > _MOST_FILES:
            raise ProjectError(f"{name} is one of more than {_MOST_FILES} files of requirements")
        # a backslash at the end of a line goes on with the next one
        for number, line in enumerate(_joined(self.text(name)), 1):
            self.add(line, f"{name}, entry {number}", kind, PurePosixPath(name).parent)

    def add(self, line: str, where: str, kind: str, folder: PurePosixPath = PurePosixPath()) -> None:  # noqa: B008
        line = _COMMENT.sub("", line).strip()
        if not line:
            return
        if option := _FILE_OPTION.fullmatch(line):
            is_constraint = option[1] in ("-c", "--constraint") or kind == "constraints"
            self.add_file(str(folder / option[2]), "constraints" if is_constraint else "requirements")
            return
        hashes = _HASH.findall(line)
        bare = _HASH.sub("", line).strip()
        found = _REQUIREMENT.fullmatch(bare)
        if found is None or _ARCHIVE.search(found["name"]) or not all(map(_HASH_VALUE.fullmatch, hashes)):
            raise ProjectError(
                f"{where} is {line[:80]!r}, which is no name of a package of the site's index: addresses, paths and"
                " options besides -r and -c are not taken"
            )
        if hashes and not re.fullmatch(r"===?[^,*]+", (found["version"] or "").strip()):
            raise ProjectError(f"{where} has hashes, and no single version of {found['name']!r}: give ==VERSION")
        target = self.constraints if kind == "constraints" else self.requirements
        target.append(" ".join([bare, *(f"--hash={one}" for one in sorted(hashes))]))


def _joined(text: str) -> list[str]:
    return [line for line in re.sub(r"\\\r?\n", " ", text).splitlines() if _COMMENT.sub("", line).strip()]


def _read_python_env(name: str, found: _Lines) -> str:
    """Add what a `python_env.yaml` asks for; the version of Python that it names."""
    text = found.text(name)
    if len(text) > _LARGEST_YAML:
        raise ProjectError(f"{name} is longer than {_LARGEST_YAML:,} characters")
    # all values as they are written: 3.10 is no number
    content = mlproject.mapping(name, text, yaml.BaseLoader)
    listed = [content.get(key) or [] for key in ("build_dependencies", "dependencies")]
    if _OF_CONDA & set(content) or any(isinstance(one, dict) for part in listed for one in part):
        raise ProjectError(f"{name} is for conda, which is not here: write a python_env.yaml instead")
    for key in content:
        if key not in _KEYS:
            raise ProjectError(f"{name} has the key {str(key)[:80]!r}; there are {', '.join(sorted(_KEYS))}")
    folder = PurePosixPath(file_of(name)).parent
    for part in listed:
        if not isinstance(part, list) or not all(isinstance(one, str) for one in part):
            raise ProjectError(f"{name} has dependencies that are no list of requirements")
        for number, line in enumerate(part, 1):
            found.add(line, f"{name}, entry {number}", "requirements", folder)
    return str(content.get("python") or "").strip()
