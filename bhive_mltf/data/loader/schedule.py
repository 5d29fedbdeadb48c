"""In which order batches are filled and windows decoded; the same jets in the same places, whoever does the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.loader import rank_shares
from bhive_mltf.data.loader.batch_plan import BatchPlan, GlobalBatch, Part, padded_lengths
from bhive_mltf.data.loader.buffers import BatchShape, Ring, SharedBuffers
from bhive_mltf.data.loader.order import Window
from bhive_mltf.data.loader.pool import Pool
from bhive_mltf.data.loader.workers import Decode, Fill, Work, positions_in, rank_slice
from bhive_mltf.interface import ModelInputs


@dataclass(frozen=True)
class BatchTask:
    """One rank's slice of a global batch, to be read."""

    number: int
    parts: tuple[Part, ...]
    shape: BatchShape

    def write_positions(self, out: NDArray[np.int64]) -> None:
        """Write the stored positions [B] in the order of the batch."""
        if self.parts:
            np.concatenate([part.positions for part in self.parts], out=out)


@dataclass(frozen=True)
class EpochTasks:
    """What a rank reads in an epoch.

    balanced : deal the jets of a global batch to the ranks by work; else each takes a contiguous slice.
    """

    plan: BatchPlan
    inputs: ModelInputs
    rank: int
    world_size: int
    balanced: bool = False

    def tasks(self, epoch: int, start: int) -> Iterator[BatchTask]:
        """The tasks of an epoch from batch `start` on."""
        index = self.plan.wanted.source.index
        for batch in self.plan.batches(epoch, start):
            lengths = padded_lengths(index, batch.positions, self.inputs)
            parts = self._share(batch)
            n_jets = sum(len(part.positions) for part in parts)
            yield BatchTask(batch.number, parts, BatchShape(n_jets, tuple(lengths.values()), len(batch)))

    def _share(self, batch: GlobalBatch) -> tuple[Part, ...]:
        """Jets of a global batch for this rank, in their order."""
        if self.balanced and self.world_size > 1:
            cost = rank_shares.work(self.plan.wanted.source.index, batch.positions, self.inputs)
            if cost is not None:
                return batch.pick(rank_shares.assign(cost, self.world_size) == self.rank)
        return batch.cut(rank_slice(len(batch), self.rank, self.world_size))


@dataclass(frozen=True)
class _FillStep:
    """Part `part` of a task; None for a task without jets."""

    task: BatchTask
    part: int | None


_DecodeStep = tuple[Window, int]
_Step = _FillStep | _DecodeStep


def steps(tasks: Iterable[BatchTask], decode: bool, ahead: bool) -> Iterator[_Step]:
    """Tasks as steps: each window is decoded before it is used, and `ahead` while the one before it is used."""
    window: Window | None = None
    waiting: list[_Step] = []
    for task in tasks:
        for part in range(len(task.parts)) if task.parts else [None]:
            found = None if part is None else task.parts[part].window
            if decode and found is not None and found != window:
                yield from _interleaved(waiting, [(found, block) for block in found])
                waiting, window = [], found
            if decode and ahead:
                waiting.append(_FillStep(task, part))
            else:
                yield _FillStep(task, part)
    yield from waiting


def _interleaved(first: list[_Step], second: list[_Step]) -> Iterator[_Step]:
    """Both lists, evenly mixed."""
    places = sorted(
        chain(
            ((i / len(first), 0, i) for i in range(len(first))),
            ((i / len(second), 1, i) for i in range(len(second))),
        )
    )
    return ((first, second)[which][i] for _, which, i in places)


@dataclass
class _Filling:
    """A batch under way."""

    task: BatchTask
    buffer: int
    left: int


@dataclass
class _Decoding:
    """A window in an arena."""

    arena: int
    blocks_left: int
    fills: int = 0


@dataclass
class Schedule:
    """Hands the steps of one epoch to a pool, as buffers and arenas become free.

    n_arenas : windows that are decoded at the same time; 0: none needs to be.
    ahead : work on later batches while one is waited for.
    """

    pool: Pool
    ring: Ring
    buffers: SharedBuffers
    n_arenas: int
    ahead: bool
    steps: Iterator[_Step]
    _next: _Step | None = field(default=None, init=False)
    _order: deque[_Filling] = field(default_factory=deque, init=False)
    _by_buffer: dict[int, _Filling] = field(default_factory=dict, init=False)
    _windows: dict[Window, _Decoding] = field(default_factory=dict, init=False)
    _n_windows: int = field(default=0, init=False)
    _under_way: int = field(default=0, init=False)
    _ended: bool = field(default=False, init=False)

    def next(self) -> tuple[int, BatchShape] | None:
        """The next batch: number of its buffer, and its shape. None at the end of the epoch."""
        while True:
            self._settle(self.pool.done(wait=False))
            issued = self._issue()
            if self._is_ready():
                filling = self._order.popleft()
                del self._by_buffer[filling.buffer]
                return filling.buffer, filling.task.shape
            if self._ended and not self._order:
                return None
            if not self._under_way and not issued:
                raise RuntimeError("no buffer is free, and none is being filled")
            self._settle(self.pool.done(wait=True))

    def drop(self) -> None:
        """Wait for what is under way, and free the buffers of batches that nobody took."""
        self.steps, self._next, self._ended = iter(()), None, True
        while self._under_way:
            self._settle(self.pool.done(wait=True))
        for filling in self._order:
            self.ring.give_back(filling.buffer)
        self._order.clear()

    def _is_ready(self) -> bool:
        return bool(self._order) and self._order[0].left == 0

    def _issue(self) -> bool:
        """Hand out what can be handed out; True if there was anything."""
        issued = False
        while self.pool.has_room() and (self.ahead or not self._is_ready()):
            if self._next is None:
                self._next = next(self.steps, None)
            self._ended = self._next is None
            if self._next is None or not self._start(self._next):
                break
            self._next, issued = None, True
        return issued

    def _start(self, step: _Step) -> bool:
        """Hand out a step; False if it has to wait."""
        work = self._fill(step) if isinstance(step, _FillStep) else self._decode(*step)
        if isinstance(work, Decode | Fill):
            self._under_way += 1
            self.pool.submit(work)
        return work is not None

    def _fill(self, step: _FillStep) -> Work | bool | None:
        """What to hand out; True if there is nothing to do, None if the step has to wait."""
        window = None if step.part is None else step.task.parts[step.part].window
        decoding = self._windows.get(window) if window is not None else None
        if decoding is not None and decoding.blocks_left:
            return None
        if not self._order or self._order[-1].task is not step.task:
            buffer = self.ring.take()
            if buffer is None:
                return None
            step.task.write_positions(positions_in(self.buffers.view(buffer), step.task.shape.n_jets))
            self._order.append(_Filling(step.task, buffer, len(step.task.parts)))
            self._by_buffer[buffer] = self._order[-1]
        if step.part is None or window is None:
            return True
        if decoding is not None:
            decoding.fills += 1
        parts, filling = step.task.parts, self._order[-1]
        first = sum(len(part.positions) for part in parts[: step.part])
        n_jets = len(parts[step.part].positions)
        return Fill(filling.buffer, step.task.shape, first, n_jets, window, decoding.arena if decoding else -1)

    def _decode(self, window: Window, block: int) -> Work | None:
        if window not in self._windows:
            arena = self._n_windows % self.n_arenas
            for other, decoding in list(self._windows.items()):
                if decoding.arena == arena:
                    if decoding.fills or decoding.blocks_left:
                        return None
                    del self._windows[other]
            self._windows[window] = _Decoding(arena, len(window))
            self._n_windows += 1
        return Decode(window, block, self._windows[window].arena)

    def _settle(self, done: list[Work]) -> None:
        for finished in done:
            self._under_way -= 1
            if isinstance(finished, Decode):
                self._windows[finished.window].blocks_left -= 1
            else:
                self._by_buffer[finished.buffer].left -= 1
                if finished.arena >= 0:
                    self._windows[finished.window].fills -= 1
