"""Batches one after another, read in this process or by workers that stay from one epoch to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from bhive_mltf.data.loader.buffers import BatchShape, Ring, SharedBuffers, buffer_bytes, unpack
from bhive_mltf.data.loader.pool import START_METHOD, Inline, Pool, Workers
from bhive_mltf.data.loader.schedule import EpochTasks, Schedule, steps
from bhive_mltf.data.loader.windows import LoaderView
from bhive_mltf.data.loader.workers import BatchReader, rank_slice
from bhive_mltf.interface import Batch

__all__ = ["START_METHOD", "BatchStream"]

# Batches that the user may hold while others are filled; of more than that, copies are made.
_HELD = 3

_Result = TypeVar("_Result")


class BatchStream:
    """The batches of one epoch at a time, in order.

    Parameters
    ----------
    view, tasks : how to read, and what.
    batch_size : jets of a global batch.
    n_threads : worker processes; 0 reads in this process.
    pin_memory : batches in pinned memory; without effect where there is no CUDA.
    start_method : of the workers.
    """

    def __init__(
        self,
        view: LoaderView,
        tasks: EpochTasks,
        batch_size: int,
        *,
        n_threads: int,
        pin_memory: bool,
        start_method: str,
    ) -> None:
        self._view = view
        self._tasks = tasks
        self._n_threads = n_threads
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._start_method = start_method
        last = rank_slice(batch_size, tasks.world_size - 1, tasks.world_size)
        self._n_jets = last.stop - last.start
        self._pool: Pool | None = None
        self._buffers: SharedBuffers | None = None
        self._ring: Ring | None = None
        self._n_arenas = 0
        self._schedule: Schedule | None = None

    def start(self, epoch: int, start: int) -> None:
        """Go to batch `start` of `epoch`; what was under way is dropped."""
        if self._schedule is not None:
            self._guarded(self._schedule.drop)
        if self._pool is None or self._ring is None or self._buffers is None:
            self._pool, self._ring, self._buffers = self._open()
        ahead = self._n_threads > 0
        work = steps(self._tasks.tasks(epoch, start), decode=self._n_arenas > 0, ahead=ahead)
        self._schedule = Schedule(self._pool, self._ring, self._buffers, self._n_arenas, ahead, work)

    def next(self) -> Batch | None:
        """The next batch, None at the end of the epoch. An error ends the workers.

        Raises
        ------
        BhiveError : the reader's, whether it happened here or in a worker.
        TrainingError : a worker died.
        """
        if self._schedule is None:
            raise RuntimeError("no epoch has been started")
        found = self._guarded(self._schedule.next)
        return None if found is None else self._batch(*found)

    def close(self) -> None:
        """End the workers; `start` starts them again."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._ring = self._buffers = self._schedule = None

    @property
    def workers(self) -> Workers | None:
        """The worker processes, if there are any now."""
        return self._pool if isinstance(self._pool, Workers) else None

    def _open(self) -> tuple[Pool, Ring, SharedBuffers]:
        size = buffer_bytes(self._view.inputs, self._n_jets)
        n_buffers, n_arenas = 2 * self._n_threads + _HELD + 1, 2 if self._n_threads else 1
        reader = BatchReader(self._view, n_buffers, size, n_arenas, shared=self._n_threads > 0)
        self._n_arenas = reader.arenas.number if reader.arenas else 0
        pool: Pool = Workers(reader, self._n_threads, self._start_method) if self._n_threads else Inline(reader)
        if self._pin_memory:
            # After the workers are there: they must not inherit what CUDA keeps of these pages.
            reader.buffers.pin()
        return pool, Ring(reader.buffers), reader.buffers

    def _batch(self, number: int, shape: BatchShape) -> Batch:
        if self._ring is None or self._buffers is None:
            raise RuntimeError("the workers have ended")
        if self._ring.n_lent < _HELD:
            return unpack(self._ring.lend(number), shape, self._view.inputs, pin_memory=self._pin_memory)
        size = max(place.stop for place in shape.places(self._view.inputs).values())
        kept = torch.empty(size, dtype=torch.uint8, pin_memory=self._pin_memory).numpy()
        kept[:] = self._buffers.view(number)[:size]
        self._ring.give_back(number)
        return unpack(kept, shape, self._view.inputs, pin_memory=self._pin_memory)

    def _guarded(self, function: Callable[[], _Result]) -> _Result:
        try:
            return function()
        except BaseException:
            self.close()
            raise
