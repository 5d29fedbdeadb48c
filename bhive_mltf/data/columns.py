"""Which columns of which groups a reader wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.schema import Schema
from bhive_mltf.errors import DataError, nearest


@dataclass(frozen=True)
class Selection:
    """Groups to read: name, number of stored columns, positions of the wanted ones (None: all, in stored order)."""

    groups: tuple[tuple[str, int, NDArray[np.int64] | None], ...]
    n_truths: int

    @classmethod
    def of(cls, schema: Schema, columns: Mapping[str, Sequence[str]] | None = None) -> Selection:
        """Resolve names of columns.

        Parameters
        ----------
        columns : per group the columns, in the order wanted; groups not named are left out. None: everything.

        Raises
        ------
        DataError
            The training set has no such group or column.
        """
        groups: list[tuple[str, int, NDArray[np.int64] | None]] = []
        if columns is not None:
            stored = [group.name for group in schema.groups]
            for name in columns:
                if name not in stored:
                    raise DataError(f"the training set has no group {name}; there are {', '.join(stored)}")
        for group in schema.groups:
            if columns is None:
                groups.append((group.name, len(group.columns), None))
            elif group.name in columns:
                wanted = tuple(columns[group.name])
                positions = _positions(group.name, group.columns, wanted)
                groups.append((group.name, len(group.columns), None if wanted == group.columns else positions))
        return cls(tuple(groups), len(schema.truths))

    def apply(self, block: JetBlock) -> JetBlock:
        """A block with all columns, cut down to the wanted ones."""
        features = {
            name: block.features[name] if columns is None else block.features[name][:, columns]
            for name, _, columns in self.groups
        }
        counts = {name: counts for name, counts in block.counts.items() if name in features}
        return replace(block, features=features, counts=counts)


def _positions(group: str, stored: tuple[str, ...], wanted: tuple[str, ...]) -> NDArray[np.int64]:
    places = {name: i for i, name in enumerate(stored)}
    for name in wanted:
        if name not in places:
            raise DataError(
                f"the training set has no column `{name}` in the group {group}; nearest: "
                f"{', '.join(nearest(name, stored))}: build it with a config that has the column"
            )
    return np.array([places[name] for name in wanted], np.int64)
