"""Ranges of a block of jets, without copies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.schema import GLOBAL, Schema


def empty_block(schema: Schema) -> JetBlock:
    """A block without jets."""
    return JetBlock(
        features={group.name: np.zeros((0, len(group.columns)), np.float32) for group in schema.groups},
        counts={group.name: np.zeros(0, np.int32) for group in schema.candidate_groups},
        truth=np.zeros((0, len(schema.truths)), np.bool_),
        process=np.zeros(0, np.int16),
        weight=np.zeros(0, np.float32),
        jet_id=np.zeros((0, 2), np.int64),
        kinematics=np.zeros((0, 2), np.float32),
    )


def slice_jets(block: JetBlock, start: int, stop: int) -> JetBlock:
    """The jets [start, stop) of a block, as views."""
    if start == 0 and stop == len(block):
        return block
    features = {}
    for name, values in block.features.items():
        if name == GLOBAL:
            features[name] = values[start:stop]
        else:
            first = int(block.counts[name][:start].sum(dtype=np.int64))
            features[name] = values[first : first + int(block.counts[name][start:stop].sum(dtype=np.int64))]
    return JetBlock(
        features=features,
        counts={name: counts[start:stop] for name, counts in block.counts.items()},
        truth=block.truth[start:stop],
        process=block.process[start:stop],
        weight=block.weight[start:stop],
        jet_id=block.jet_id[start:stop],
        kinematics=block.kinematics[start:stop],
    )


def regroup(blocks: Iterator[JetBlock], sizes: Iterator[int]) -> Iterator[JetBlock]:
    """The same jets in the same order, cut anew into blocks of the given `sizes`.

    The sizes have to add up to the number of jets.
    """
    pending: list[JetBlock] = []
    held = 0
    for size in sizes:
        while held < size:
            block = next(blocks)
            pending.append(block)
            held += len(block)
        joined = JetBlock.concatenate(pending)
        yield slice_jets(joined, 0, size)
        pending = [slice_jets(joined, size, held)] if held > size else []
        held -= size
