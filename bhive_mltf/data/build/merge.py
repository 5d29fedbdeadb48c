"""The global order: a merge of sorted chunks that holds a bounded number of jets in memory."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.build.staged_file import StagedFile

DEFAULT_BYTES = 64 << 20
# Blocks of this size stay in the caches, and in memory that the allocator has at hand.
_GOOD_BYTES = 8 << 20
# Fewer jets of a chunk at a time, and looking them up costs more than copying them.
_GOOD_RUN = 16
_LEAST_JETS = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


def merged(
    staged: Sequence[StagedFile],
    content_ids: NDArray[np.uint64],
    *,
    max_bytes: int = DEFAULT_BYTES,
    threads: int = 1,
    finish: Callable[[JetBlock], JetBlock] = lambda block: block,
) -> Iterator[JetBlock]:
    """All jets by ascending (key, content id, entry), in blocks of no particular size.

    Keys are evenly spread over 64 bits, so that equal ranges of keys hold about equally many jets; each range is a
    contiguous run of every chunk.

    Parameters
    ----------
    content_ids : uint64, of the sources of all staged files, one after the other; the jet ids of the blocks refer to
        this order.
    max_bytes : of a block, about; blocks are smaller where that is fast.
    threads : that put blocks together; with more than one, as many blocks are ready ahead.
    finish : what is done to each block, in those threads.
    """
    chunks = [(file, number) for file in staged for number in range(len(file))]
    first_source = np.cumsum([0, *(len(file.record.sources) for file in staged)])
    shift = {id(file): int(first) for file, first in zip(staged, first_source, strict=False)}

    def block(run: tuple[NDArray[np.int64], NDArray[np.int64]]) -> JetBlock:
        begins, ends = run
        pieces, keys = [], []
        for i in np.flatnonzero(ends > begins):
            file, number = chunks[i]
            pieces.append(file.read(number, int(begins[i]), int(ends[i])))
            pieces[-1].jet_id[:, 0] += shift[id(file)]
            keys.append(file.keys[number][begins[i] : ends[i]])
        jets = JetBlock.concatenate(pieces)
        return finish(jets.take(_order(jets.jet_id, np.concatenate(keys), content_ids)))

    runs = _runs(chunks, _bucket_jets(staged, max_bytes))
    return in_threads(block, runs, threads) if chunks else iter(())


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """`map` by several threads: results in the order of the items, `threads` of them ahead at most."""
    if threads <= 1:
        yield from map(function, items)
        return
    waiting: collections.deque[Future[Result]] = collections.deque()
    with ThreadPoolExecutor(threads, "merge") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_background(function: Callable[[Item], object], items: Iterable[Item], *, apart: bool) -> Iterator[Item]:
    """Each item, after `function` has been called with it; with `apart` in another thread, one item behind.

    The calls come one after the other, in order. When the iterator has ended or is closed, all of them are over.
    """
    if not apart:
        for item in items:
            function(item)
            yield item
        return
    with ThreadPoolExecutor(1, "write") as pool:
        last: Future[object] | None = None
        for item in items:
            if last is not None:
                last.result()
            last = pool.submit(function, item)
            yield item
        if last is not None:
            last.result()


def _order(ids: NDArray[np.int64], keys: NDArray[np.uint64], content_ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    if (ordered[1:] != ordered[:-1]).all():
        return order
    return np.lexsort((ids[:, 1], content_ids[ids[:, 0]], keys))


def _bucket_jets(staged: Sequence[StagedFile], max_bytes: int) -> int:
    n_chunks = sum(len(file) for file in staged)
    per_jet = max(1.0, sum(file.bytes for file in staged) / max(1, _jets(staged)))
    wanted = max(_GOOD_BYTES / per_jet, _GOOD_RUN * n_chunks)
    return int(max(_LEAST_JETS, min(wanted, max_bytes / per_jet)))


def _jets(staged: Sequence[StagedFile]) -> int:
    return sum(len(keys) for file in staged for keys in file.keys)


def _runs(
    chunks: Sequence[tuple[StagedFile, int]], bucket_jets: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each range of keys that holds jets: where its run begins and ends in each chunk."""
    keys = [file.keys[number] for file, number in chunks]
    n_buckets = max(1, -(-sum(map(len, keys)) // bucket_jets))
    begins = np.zeros(len(keys), np.int64)
    for bucket in range(1, n_buckets + 1):
        if bucket < n_buckets:
            edge = np.uint64((bucket << 64) // n_buckets)
            ends = np.array([column.searchsorted(edge) for column in keys], np.int64)
        else:
            ends = np.array([len(column) for column in keys], np.int64)
        if (ends > begins).any():
            yield begins, ends
        begins = ends
