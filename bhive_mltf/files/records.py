"""What an output directory was made with.

Upstream's paths carry few parameters, so that a changed batch size, say, finds the old result (W17). Each output
directory therefore has a `parameters.json`, and a command is held against it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from bhive_mltf.errors import DataError, RecordMismatchError
from bhive_mltf.files.atomic import write_json

RECORD_NAME = "parameters.json"
_Content = TypeVar("_Content")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_dataclass(kind: type[_Content], path: Path) -> _Content | None:
    """A dataclass from the JSON object in a file; unknown keys are left out, a file that is none gives None."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
        return kind(**{name: value for name, value in content.items() if name in known and value is not None})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Record:
    """The parameters of a result and the generation it belongs to.

    A generation is new whenever the result is made anew (restart, resume_epoch, extension), so that what was derived
    from an older one is seen to be out of date.
    """

    parameters: Mapping[str, Any]
    generation: str
    sources: Mapping[str, str] = field(default_factory=dict)
    """Name -> generation of the results that this one was made from."""

    @classmethod
    def new(cls, parameters: Mapping[str, Any], sources: Mapping[str, str | Path] | None = None) -> Record:
        """A record with a generation of its own, made from the results in the directories `sources`."""
        found = {name: cls.read(directory) for name, directory in (sources or {}).items()}
        generations = {name: record.generation for name, record in found.items() if record is not None}
        return cls(json.loads(json.dumps(parameters)), secrets.token_hex(6), generations)

    @classmethod
    def read(cls, directory: str | Path) -> Record | None:
        """The record of `directory`, None when it has none; DataError when it is not readable."""
        path = Path(directory) / RECORD_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(content["parameters"], content["generation"], content.get("sources", {}))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a record of parameters ({error}): restore it or remove it") from error

    def write(self, directory: str | Path) -> None:
        """Write the record to `directory`."""
        content = {"generation": self.generation, "sources": dict(self.sources), "parameters": dict(self.parameters)}
        write_json(Path(directory) / RECORD_NAME, content)


def is_current(directory: str | Path, sources: Mapping[str, str | Path]) -> bool:
    """False when the result in `directory` was made from another generation of one of its sources.

    A source or a result without a record says nothing: what cannot be compared stays valid.
    """
    record = Record.read(directory)
    if record is None:
        return True
    for name, source in sources.items():
        now = Record.read(source)
        if now is not None and record.sources.get(name, now.generation) != now.generation:
            return False
    return True


def compare(
    recorded: Mapping[str, Any], asked: Mapping[str, Any], defaults: Mapping[str, Any], directory: str | Path
) -> list[str]:
    """Hold a command's parameters against what `directory` was made with.

    Returns
    -------
    One sentence per parameter that is asked for at its default while another value is recorded; the recorded one holds.

    Raises
    ------
    RecordMismatchError : a parameter was asked for that is neither the recorded value nor the default.
    """
    asked = json.loads(json.dumps(asked))
    defaults = json.loads(json.dumps(defaults))
    notes, conflicts = [], []
    for name, value in asked.items():
        # what a record of an earlier version does not know was at its default then
        there = recorded.get(name, defaults.get(name, value))
        if there == value:
            continue
        option = "--" + name.replace("_", "-")
        if value == defaults.get(name):
            notes.append(f"{directory} was made with {option} {_show(there)}, which holds")
        else:
            conflicts.append(f"{option} {_show(there)}, and {_show(value)} is asked for")
    if conflicts:
        raise RecordMismatchError(
            f"{directory} was made with {'; '.join(conflicts)}: give the result another version, or take the "
            "recorded value"
        )
    return notes


def _show(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return value if isinstance(value, str) and value else json.dumps(value)
