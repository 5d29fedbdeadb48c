"""How far a feature typically spreads: the unit of its changes with `individual_factors`.

S: candidates of a group in the sample; F: columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.dataset import Dataset
from bhive_mltf.interface import ModelInputs

SAMPLE = 32_768  # jets
SLICES = 16

Factors = Mapping[str, NDArray[np.float64]]


def feature_factors(dataset: Dataset, inputs: ModelInputs) -> Factors:
    """Standard deviation of each feature of `inputs` [F] per group, over the values that are not zero.

    From up to 32768 jets in 16 runs, evenly spread over the stored order; the same for every rank and whoever asks
    again. A feature without two such values, or without a finite spread, has factor 0: an attack does not move it.
    """
    columns = {group.name: group.columns for group in inputs.groups}
    blocks = [dataset.read(start, stop, columns) for start, stop in _slices(len(dataset))]
    return {name: _spread(np.concatenate([np.asarray(block.features[name]) for block in blocks])) for name in columns}


def _slices(n_jets: int) -> list[tuple[int, int]]:
    if n_jets <= SAMPLE:
        return [(0, n_jets)]
    length = SAMPLE // SLICES
    return [(start, start + length) for start in (i * (n_jets - length) // (SLICES - 1) for i in range(SLICES))]


def _spread(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of rows [S,F], per column [F]."""
    spread = np.zeros(values.shape[1])
    for column in range(values.shape[1]):
        present = values[:, column].astype(np.float64)
        present = present[np.isfinite(present) & (present != 0)]
        if len(present) > 1:
            spread[column] = present.std()
    return spread
