"""The global order: a merge of sorted chunks that holds a bounded number of jets in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.staging import StagedFile

_BUCKET_BYTES = 64 << 20
_MIN_BUCKET, _MAX_BUCKET = 2_048, 65_536


def merged(
    staged: Sequence[StagedFile], content_ids: NDArray[np.uint64], bucket_jets: int | None = None
) -> Iterator[JetBlock]:
    """All jets by ascending (key, content id, entry), in blocks of no particular size.

    Keys are evenly spread over 64 bits, so that equal ranges of keys hold about equally many jets; each range is a
    contiguous run of every chunk.

    Parameters
    ----------
    content_ids : uint64, of the sources of all staged files, one after the other; the jet ids of the blocks refer to
        this order.
    bucket_jets : jets per block, about; None: what 64 MiB hold.
    """
    chunks = [(file, number) for file in staged for number in range(len(file))]
    first_source = np.cumsum([0, *(len(file.record.sources) for file in staged)])
    shift = {id(file): int(first) for file, first in zip(staged, first_source, strict=False)}
    edges = _edges(staged, bucket_jets or _bucket_jets(staged))
    runs = np.stack([_cut(file.keys[number], edges) for file, number in chunks]) if chunks else np.zeros((0, 2), int)
    for bucket in range(runs.shape[1] - 1):
        begins, ends = runs[:, bucket], runs[:, bucket + 1]
        pieces, keys = [], []
        for i in np.flatnonzero(ends > begins):
            file, number = chunks[i]
            block = file.read(number, int(begins[i]), int(ends[i]))
            block.jet_id[:, 0] += shift[id(file)]
            pieces.append(block)
            keys.append(file.keys[number][begins[i] : ends[i]])
        if pieces:
            block = JetBlock.concatenate(pieces)
            yield block.take(_order(block, np.concatenate(keys), content_ids))


def _order(block: JetBlock, keys: NDArray[np.uint64], content_ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.lexsort((block.jet_id[:, 1], content_ids[block.jet_id[:, 0]], keys))


def _bucket_jets(staged: Sequence[StagedFile]) -> int:
    jets = sum(len(keys) for file in staged for keys in file.keys)
    per_jet = sum(file.bytes for file in staged) / max(1, jets)
    return int(np.clip(_BUCKET_BYTES / max(1.0, per_jet), _MIN_BUCKET, _MAX_BUCKET))


def _edges(staged: Sequence[StagedFile], bucket_jets: int) -> NDArray[np.uint64]:
    """Inner edges of the ranges of keys."""
    jets = sum(len(keys) for file in staged for keys in file.keys)
    n_buckets = max(1, -(-jets // bucket_jets))
    return np.array([(i << 64) // n_buckets for i in range(1, n_buckets)], np.uint64)


def _cut(keys: NDArray[np.uint64], edges: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.searchsorted(keys, edges), [len(keys)]]).astype(np.int64)
