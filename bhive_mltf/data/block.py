"""A run of jets in memory: columns, candidates jagged, no padding.

J: jets; S: candidates of one group, summed over the jets; F: columns of a group; K: truth labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.schema import GLOBAL


@dataclass(frozen=True)
class JetBlock:
    """What passes between conversion, shards and loader.

    features : per group float32; `global` [J,F], candidate groups [S,F], the candidates of jet 0 first.
    counts : per candidate group int32 [J], S = counts.sum().
    truth : bool [J,K], in the order of the config's truths.
    process : int16 [J], index into the config's processes.
    weight : float32 [J], probability in [0, 1] of weighted sampling.
    jet_id : int64 [J,2], (index of the source file in the manifest, entry in its tree).
    kinematics : float32 [J,2], (pt, eta), always at full width.
    """

    features: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, NDArray[np.int32]]
    truth: NDArray[np.bool_]
    process: NDArray[np.int16]
    weight: NDArray[np.float32]
    jet_id: NDArray[np.int64]
    kinematics: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.weight)

    def take(self, jets: NDArray[np.int64]) -> JetBlock:
        """The jets at these positions, in this order."""
        features = {}
        for name, values in self.features.items():
            rows = jets if name == GLOBAL else candidate_rows(self.counts[name], jets)
            features[name] = values[rows]
        return JetBlock(
            features=features,
            counts={name: counts[jets] for name, counts in self.counts.items()},
            truth=self.truth[jets],
            process=self.process[jets],
            weight=self.weight[jets],
            jet_id=self.jet_id[jets],
            kinematics=self.kinematics[jets],
        )

    @staticmethod
    def concatenate(blocks: Sequence[JetBlock]) -> JetBlock:
        """Blocks of one schema, end to end."""
        if len(blocks) == 1:
            return blocks[0]
        first = blocks[0]
        return JetBlock(
            features={name: np.concatenate([b.features[name] for b in blocks]) for name in first.features},
            counts={name: np.concatenate([b.counts[name] for b in blocks]) for name in first.counts},
            truth=np.concatenate([b.truth for b in blocks]),
            process=np.concatenate([b.process for b in blocks]),
            weight=np.concatenate([b.weight for b in blocks]),
            jet_id=np.concatenate([b.jet_id for b in blocks]),
            kinematics=np.concatenate([b.kinematics for b in blocks]),
        )


def candidate_rows(counts: NDArray[np.int32], jets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows [S'] of the candidates of `jets` in the flat array of a group with `counts` [J]."""
    ends = np.cumsum(counts, dtype=np.int64)
    taken = counts[jets].astype(np.int64)
    starts = ends[jets] - taken
    offsets = np.cumsum(taken) - taken
    return np.repeat(starts - offsets, taken) + np.arange(taken.sum())
