"""`MLproject`: the entry points of a project, and the command that one of them stands for.

The template of a command is split into arguments first, and values are put into single arguments then: a value is
never read by a shell, and never becomes two arguments.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

import yaml

from bhive_mltf.errors import nearest
from bhive_mltf.gateway.errors import ProjectError

NAME: Final = "MLproject"
LARGEST_BYTES: Final = 256 * 1024
_PLACE: Final = re.compile(r"\{(\w+)\}")
_PARAMETER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_TYPES: Final = ("string", "float", "path", "uri")
# what a shell would read in a template that is not quoted
_SHELL: Final = re.compile(r"[|&;<>`$()\n]")
_ENVIRONMENTS: Final = ("python_env", "conda_env", "docker_env")
_KEYS: Final = frozenset({"name", "entry_points", *_ENVIRONMENTS})
_FILE: Final = re.compile(r"[^\x00-\x1f\x7f\\]{1,200}")


@dataclass(frozen=True)
class Parameter:
    """A declared parameter; `default` None when it must be given."""

    type: str = "string"
    default: str | None = None


@dataclass(frozen=True)
class EntryPoint:
    """A command with places for parameters."""

    name: str
    command: str
    parameters: dict[str, Parameter] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> EntryPoint:
        """From `as_dict`."""
        parameters = {name: Parameter(**one) for name, one in content["parameters"].items()}
        return cls(content["name"], content["command"], parameters)

    def argv(self, values: Mapping[str, str]) -> list[str]:
        """The arguments of the command with these values.

        Parameters that are not declared are added at the end, as mlflow does.

        Raises
        ------
        ProjectError : a value is missing, or is not of the declared type.
        """
        filled = {}
        for name, parameter in self.parameters.items():
            value = values.get(name, parameter.default)
            if value is None:
                raise ProjectError(f"entry point {self.name!r} needs the parameter {name!r}: give -P {name}=VALUE")
            filled[name] = _checked(name, value, parameter)
        arguments = [_PLACE.sub(lambda found: _value(filled, found, self.name), part) for part in _split(self.command)]
        for name, value in values.items():
            if name not in self.parameters:
                if not _PARAMETER.fullmatch(name):
                    raise ProjectError(f"{name!r} is no name of a parameter")
                _text(name, value)
                # one argument, so that a value that begins with a dash is no option of its own
                arguments += [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
        return arguments


@dataclass(frozen=True)
class MLproject:
    """What the file says."""

    name: str
    entry_points: dict[str, EntryPoint]
    environment: str = ""
    """`python_env: FILE`, `conda_env: FILE` or `docker_env: IMAGE`; empty where it asks for none."""


def parse(text: str) -> MLproject:
    """The entry points of an `MLproject` file.

    Raises
    ------
    ProjectError : it is not what mlflow reads, or asks for what the gateway does not have.
    """
    content = mapping(NAME, text, yaml.SafeLoader)
    for key in content:
        if key not in _KEYS:
            raise ProjectError(f"{NAME} has the key {key!r}; there are {', '.join(sorted(_KEYS))}")
    points = content.get("entry_points") or {}
    if not isinstance(points, dict):
        raise ProjectError(f"entry_points of {NAME} is no mapping")
    name = content.get("name")
    found = {str(key): _entry_point(str(key), value) for key, value in points.items()}
    return MLproject(str(name)[:100] if name is not None else "", found, _environment(content))


def mapping(name: str, text: str, loader: type[yaml.BaseLoader | yaml.SafeLoader]) -> dict[str, Any]:
    """The content of a YAML file; ProjectError when that is none, or has no keys."""
    try:
        content = yaml.load(text, Loader=loader)  # noqa: S506 - both loaders make plain values only
    except (yaml.YAMLError, RecursionError):
        raise ProjectError(f"{name} is no YAML") from None
    if not isinstance(content, dict):
        raise ProjectError(f"{name} has no keys")
    return content


def _environment(content: Mapping[str, Any]) -> str:
    asked = [key for key in _ENVIRONMENTS if content.get(key) is not None]
    if len(asked) > 1:
        raise ProjectError(f"{NAME} has {' and '.join(asked)}: keep one of them")
    for key in asked:
        value = content[key]
        if key == "docker_env" and isinstance(value, dict):
            value = value.get("image", "")
        if not isinstance(value, str) or not _FILE.fullmatch(value):
            raise ProjectError(f"{key} of {NAME} is {str(value)[:80]!r}, but must be a name")
        return f"{key}: {value}"
    return ""


def choose(entry_points: Mapping[str, Any], name: str) -> EntryPoint:
    """An entry point by name; ProjectError with the names there are."""
    if name not in entry_points:
        known = ", ".join(nearest(name, entry_points)) or "none"
        raise ProjectError(f"the project has no entry point {name!r}; there are: {known}")
    return EntryPoint.of(entry_points[name])


def _entry_point(name: str, content: object) -> EntryPoint:
    command = content.get("command") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(command, str) or not command.strip():
        raise ProjectError(f"entry point {name!r} of {NAME} has no command")
    declared = content.get("parameters") or {}
    if not isinstance(declared, dict):
        raise ProjectError(f"parameters of entry point {name!r} are no mapping")
    point = EntryPoint(name, command.strip(), {str(key): _parameter(str(key), one) for key, one in declared.items()})
    for part in _split(point.command):
        for place in _PLACE.findall(part):
            if place not in point.parameters:
                raise ProjectError(f"the command of entry point {name!r} names {{{place}}}, which is no parameter")
    return point


def _parameter(name: str, content: object) -> Parameter:
    if not _PARAMETER.fullmatch(name):
        raise ProjectError(f"{name!r} is no name of a parameter")
    if isinstance(content, str):
        content = {"type": content}
    if not isinstance(content, dict):
        raise ProjectError(f"parameter {name!r} is neither a type nor a mapping")
    kind, default = content.get("type", "string"), content.get("default")
    if kind not in _TYPES:
        raise ProjectError(f"parameter {name!r} has the type {kind!r}; there are {', '.join(_TYPES)}")
    return Parameter(kind, None if default is None else str(default))


def _split(command: str) -> list[str]:
    try:
        parts = shlex.split(command)
        plain = shlex.shlex(command, posix=False, punctuation_chars=False)
        plain.whitespace_split = True
        bare = [part for part in plain if part[:1] not in "'\""]
    except ValueError:
        raise ProjectError(f"the command {command!r} has a quote without its end") from None
    if not parts or any(_SHELL.search(part) for part in bare):
        raise ProjectError(
            f"the command {command!r} needs a shell: put it into a script of the project, and name that script"
        )
    return parts


def _value(filled: Mapping[str, str], found: re.Match[str], entry_point: str) -> str:
    if found[1] not in filled:
        raise ProjectError(f"the command of entry point {entry_point!r} names {{{found[1]}}}, which is no parameter")
    return filled[found[1]]


def _text(name: str, value: str) -> str:
    if "\0" in value:
        raise ProjectError(f"parameter {name!r} has a zero byte")
    if len(value) > 6000:
        raise ProjectError(f"parameter {name!r} has {len(value):,} characters: more than 6,000 are not recorded")
    return value


def _checked(name: str, value: str, parameter: Parameter) -> str:
    _text(name, value)
    if parameter.type == "float":
        try:
            float(value)
        except ValueError:
            raise ProjectError(f"parameter {name!r} is {value!r}, but must be a number") from None
    if parameter.type == "path":
        path = PurePosixPath(value)
        if ".." in path.parts:
            raise ProjectError(f"parameter {name!r} is {value!r}, which leads out of the project")
    return value
