"""Tasks spread over processes, this one among them: it works while the others still start."""

from __future__ import annotations

import collections
import concurrent.futures
import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from bhive_mltf.child_process import end_with
from bhive_mltf.errors import DataError
from bhive_mltf.gc_freeze import frozen_gc

Task = tuple[Callable[[Any], Any], Any]


def spread(tasks: Sequence[Task], workers: int) -> list[Any]:
    """Call each (function, argument) in one of up to `workers` processes; results in the order of the tasks.

    The first error ends the rest and is raised here as it was there.
    """
    with frozen_gc():
        if min(workers, len(tasks)) <= 1:
            return [function(argument) for function, argument in tasks]
        try:
            return _Spread(tasks, min(workers, len(tasks))).run()
        except BrokenProcessPool as error:
            raise DataError(
                "a process of the conversion was killed, most likely for want of memory: use fewer workers"
            ) from error


def _begin_worker(parent: int) -> None:
    end_with(parent)
    gc.freeze()


class _Spread:
    """One set of tasks on its way: whoever is free takes the next."""

    def __init__(self, tasks: Sequence[Task], workers: int) -> None:
        self._waiting = collections.deque(enumerate(tasks))
        self._n_tasks = len(tasks)
        self._others = workers - 1
        # A second task lies ready for each process where there are many, so that none waits for this one.
        self._ahead = 2 if len(tasks) >= 4 * workers else 1
        self._futures: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._failed = False

    def run(self) -> list[Any]:
        """All results."""
        results: dict[int, Any] = {}
        # spawn: the caller may hold threads and locks that a forked process would inherit.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._others, context, _begin_worker, (os.getpid(),)) as self._pool:
            try:
                for _ in range(self._others * self._ahead):
                    self._submit()
                while not self._failed and (task := self._next()):
                    number, (function, argument) = task
                    results[number] = function(argument)
                for future in concurrent.futures.as_completed(list(self._futures.values())):
                    future.result()
            finally:
                self._failed = True
                self._pool.shutdown(wait=True, cancel_futures=True)
        results |= {number: future.result() for number, future in self._futures.items()}
        return [results[number] for number in range(self._n_tasks)]

    def _next(self) -> tuple[int, Task] | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _submit(self, done: Future[Any] | None = None) -> None:
        """Give the processes one more task, when another is done."""
        if done is not None and (done.cancelled() or done.exception()):
            self._failed = True
        with self._lock:
            if self._failed or not self._waiting:
                return
            number, (function, argument) = self._waiting.popleft()
            future = self._futures[number] = self._pool.submit(function, argument)
        future.add_done_callback(self._submit)
