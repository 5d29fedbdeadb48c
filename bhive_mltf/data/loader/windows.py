"""The jets of a window: where their candidates lie, and their columns per jet, ready to be gathered into batches.

W: jets of a window, in stored order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.jagged import Memory, Recipe
from bhive_mltf.data.loader.order import Window
from bhive_mltf.data.loader.targets import Unmatched, class_targets, resolve_unmatched
from bhive_mltf.data.protocols import JetSource
from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.interface import ModelInputs


@dataclass(frozen=True)
class Candidates:
    """Candidates of one group.

    counts : int64 [W], stored candidates, at most as many as the model reads.
    begins : per plane of the recipe, int64 [W]: first byte of each jet in its piece of memory.
    """

    recipe: Recipe
    counts: NDArray[np.int64]
    begins: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class WindowTable:
    """All that a batch takes from a window.

    memory, where : pieces of memory, and the number of each jet's [W]; None: there is one piece.
    groups : candidates by group.
    jets : columns per jet by name: `global` (the model's columns) and those of `Batch`.
    """

    memory: Memory
    where: NDArray[np.int64] | None
    groups: Mapping[str, Candidates]
    jets: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class LoaderView:
    """What a loader takes from a training set, and how.

    jets : range of stored positions.
    unmatched : what becomes of jets in no class.
    weight_factors : process factors if the batch weight is the sampling probability, None if it is 1.
    """

    source: JetSource
    jets: range
    inputs: ModelInputs
    unmatched: Unmatched
    weight_factors: NDArray[np.float64] | None

    def index_columns(self, window: Window) -> dict[str, NDArray[Any]]:
        """Columns of `Batch` [W] that the index holds."""
        index, runs = self.source.index, order.window_runs(self.jets, window)
        process = _along(index.process, runs).astype(np.int64)
        targets = class_targets(_along(index.truth_bits, runs), self.source.schema.truths, self.inputs.classes)
        weight = np.ones(len(process), np.float32)
        if self.weight_factors is not None:
            probability = order.sampling_probability(_along(index.weight, runs), process, self.weight_factors)
            weight = probability.astype(np.float32)
        jet_id = np.stack([_along(index.file, runs).astype(np.int64), _along(index.entry, runs)], axis=1)
        target = resolve_unmatched(targets, self.unmatched)
        return {"target": target, "weight": weight, "jet_id": jet_id, "process": process}

    def counts(self, group: str, window: Window) -> NDArray[np.int64]:
        """Stored candidates [W] of a group, by the index."""
        values = self.source.index.counts(group)
        return _along(values, order.window_runs(self.jets, window)).astype(np.int64)

    def stored_positions(self, group: str, columns: Sequence[str]) -> list[int]:
        """Positions of columns in their group."""
        stored = self.source.schema.group(group).columns
        return [stored.index(column) for column in columns]

    @property
    def global_columns(self) -> list[int] | None:
        """Positions of the columns of `global` that the model reads; None if it reads none of that group."""
        for group in self.inputs.groups:
            if group.name == GLOBAL:
                return self.stored_positions(GLOBAL, group.columns)
        return None


def _along(values: NDArray[Any], runs: Sequence[range]) -> NDArray[Any]:
    """Values at the stored positions of some runs, in memory."""
    return np.concatenate([values[run.start : run.stop] for run in runs])
