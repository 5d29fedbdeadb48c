"""Work shared out to processes; results in its order."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from bhive_mltf.errors import DataError

_W = TypeVar("_W")
_T = TypeVar("_T")


def in_processes(function: Callable[[_W], _T], work: Sequence[_W], workers: int, killed: str) -> Iterator[_T]:
    """Results of a function for each piece of work, in up to `workers` processes; in this one, if that is one.

    Raises
    ------
    DataError
        A process was killed; its message is `killed`.
    """
    workers = min(workers, len(work))
    if workers <= 1:
        yield from map(function, work)
        return
    # spawn: the caller may hold threads and locks that a forked process would inherit.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from pool.map(function, work)
        except BrokenProcessPool as error:
            raise DataError(killed) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
