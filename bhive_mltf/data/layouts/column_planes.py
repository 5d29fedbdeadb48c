"""How the candidates of a group lie in Arrow shards: sets of columns next to each other, each with its own width.

A set of columns that a model reads whole, in its order, needs no rearrangement on the way into a batch. Network inputs
may be stored as float16; four-vectors never are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bhive_mltf.config import Config
from bhive_mltf.data.manifest import Manifest
from bhive_mltf.data.schema import GroupSchema, Schema
from bhive_mltf.errors import CorruptFileError


@dataclass(frozen=True)
class Plane:
    """Columns that are stored next to each other, candidate by candidate.

    field : name of the Arrow column.
    positions : of the columns in the group.
    """

    field: str
    positions: tuple[int, ...]
    half: bool = False

    @cached_property
    def type(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return np.dtype(np.float16 if self.half else np.float32)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one candidate."""
        return self.type.itemsize * len(self.positions)


Planes = Mapping[str, tuple[Plane, ...]]


def full_width(config: Config) -> dict[str, tuple[str, ...]]:
    """Columns per group that are never narrowed: those of the four-vectors."""
    return {group.name: group.four_vectors.columns for group in config.groups if group.four_vectors}


def planes_of(manifest: Manifest) -> Planes:
    """The planes of each candidate group in the shards of a new set."""
    return {
        group.name: _group_planes(
            group,
            manifest.storage_order.get(group.name, ()),
            manifest.full_width.get(group.name, ()),
            half=manifest.precision == "float16",
        )
        for group in manifest.schema.candidate_groups
    }


def _group_planes(
    group: GroupSchema, order: tuple[str, ...], full: tuple[str, ...], *, half: bool
) -> tuple[Plane, ...]:
    """First the columns of `order`, then the rest; full-width ones apart, when anything is to be kept apart."""
    rest = [column for column in group.columns if column not in order]
    sets = [list(order), [c for c in rest if c in full], [c for c in rest if c not in full]]
    if not order and not half:
        sets = [list(group.columns)]
    if half:
        sets = [part for columns in sets for part in _by_width(columns, full)]
    places = {column: i for i, column in enumerate(group.columns)}
    planes: list[Plane] = []
    for columns in filter(None, sets):
        field = group.name if not planes else f"{group.name}.{len(planes)}"
        planes.append(Plane(field, tuple(places[c] for c in columns), half and columns[0] not in full))
    return tuple(planes)


def _by_width(columns: list[str], full: tuple[str, ...]) -> tuple[list[str], list[str]]:
    return [c for c in columns if c not in full], [c for c in columns if c in full]


def to_json(planes: Planes) -> str:
    """The planes as kept in a shard."""
    return json.dumps({name: [[p.field, list(p.positions), p.half] for p in group] for name, group in planes.items()})


def from_json(text: bytes | None, schema: Schema, where: str) -> Planes:
    """The planes of a shard; of one that says nothing, each group is one plane."""
    groups = schema.candidate_groups
    if text is None:
        return {group.name: (Plane(group.name, tuple(range(len(group.columns)))),) for group in groups}
    try:
        found = {
            name: tuple(Plane(str(field), tuple(map(int, positions)), bool(half)) for field, positions, half in planes)
            for name, planes in json.loads(text).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"'{where}' says wrongly where its columns are: build the training set again") from error
    for group in groups:
        stored = sorted(p for plane in found.get(group.name, ()) for p in plane.positions)
        if stored != list(range(len(group.columns))):
            raise CorruptFileError(f"'{where}' lacks columns of the group {group.name}: build the training set again")
    return found
