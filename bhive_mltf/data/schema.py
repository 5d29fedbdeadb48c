"""What a training set holds (groups of columns, truth labels, processes), and the columns of it that a reader wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.errors import DataError, nearest

if TYPE_CHECKING:
    from bhive_mltf.config import Config

GLOBAL = "global"


@dataclass(frozen=True)
class GroupSchema:
    """One group: the jet itself (`global`) or one kind of candidate.

    `length` is the number of candidates kept per jet, 1 for `global`.
    """

    name: str
    columns: tuple[str, ...]
    length: int


@dataclass(frozen=True)
class Schema:
    """Groups in storage order (global, cpf, npf, vtx, lt; those without columns left out)."""

    groups: tuple[GroupSchema, ...]
    truths: tuple[str, ...]
    processes: tuple[str, ...]
    pt_key: str = "jet_pt"
    eta_key: str = "jet_eta"

    def group(self, name: str) -> GroupSchema:
        """The group called `name`; KeyError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def candidate_groups(self) -> tuple[GroupSchema, ...]:
        """All groups but the jet itself."""
        return tuple(group for group in self.groups if group.name != GLOBAL)

    @classmethod
    def of(cls, config: Config) -> Schema:
        """The schema of the training set that `config` describes."""
        return cls(
            groups=tuple(GroupSchema(g.name, g.columns, g.length) for g in config.groups),
            truths=tuple(truth.label for truth in config.truths),
            processes=tuple(config.processes),
            pt_key=config.pt_key,
            eta_key=config.eta_key,
        )


ColumnChoice = Mapping[str, NDArray[np.int64] | None]
"""By group to read: positions of the wanted columns; None: all, in stored order."""


def choose_columns(schema: Schema, columns: Mapping[str, Sequence[str]] | None = None) -> ColumnChoice:
    """Resolve names of columns.

    Parameters
    ----------
    columns : per group the columns, in the order wanted; groups not named are left out. None: everything.

    Raises
    ------
    DataError
        The training set has no such group or column.
    """
    stored = {group.name: group.columns for group in schema.groups}
    if columns is None:
        return dict.fromkeys(stored)
    for name in columns:
        if name not in stored:
            raise DataError(f"the training set has no group {name}; there are {', '.join(stored)}")
    choice: dict[str, NDArray[np.int64] | None] = {}
    for name, all_columns in stored.items():
        if name in columns:
            wanted = tuple(columns[name])
            choice[name] = None if wanted == all_columns else _positions(name, all_columns, wanted)
    return choice


def _positions(group: str, stored: tuple[str, ...], wanted: tuple[str, ...]) -> NDArray[np.int64]:
    places = {name: i for i, name in enumerate(stored)}
    for name in wanted:
        if name not in places:
            raise DataError(
                f"the training set has no column `{name}` in the group {group}; nearest: "
                f"{', '.join(nearest(name, stored))}: build it with a config that has the column"
            )
    return np.array([places[name] for name in wanted], np.int64)
