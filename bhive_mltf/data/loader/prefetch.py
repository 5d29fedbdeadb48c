"""Prefetching: in which order workers decode windows and fill batches, a few batches ahead of the one that is wanted.

The order of the work decides nothing but the speed: every jet has its place in its batch, whoever writes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from bhive_mltf.data.loader.batch_plan import RankBatch
from bhive_mltf.data.loader.buffers import BatchShape, Ring, SharedBuffers, positions_in
from bhive_mltf.data.loader.order import Window
from bhive_mltf.data.loader.reader import Decode, Fill, Work
from bhive_mltf.data.loader.workers import Workers


@dataclass(frozen=True)
class _FillStep:
    """Part `part` of a batch; None for a batch without jets."""

    batch: RankBatch
    part: int | None


_DecodeStep = tuple[Window, int]
_Step = _FillStep | _DecodeStep


def _steps(batches: Iterable[RankBatch], decode: bool) -> Iterator[_Step]:
    """Batches as steps: each window is decoded while the one before it is used."""
    window: Window | None = None
    waiting: list[_Step] = []
    for batch in batches:
        for part in range(len(batch.parts)) if batch.parts else [None]:
            found = None if part is None else batch.parts[part].window
            if decode and found is not None and found != window:
                yield from _interleaved(waiting, [(found, block) for block in found])
                waiting, window = [], found
            if decode:
                waiting.append(_FillStep(batch, part))
            else:
                yield _FillStep(batch, part)
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

    batch: RankBatch
    buffer: int
    left: int


@dataclass
class _Decoding:
    """A window in an arena."""

    arena: int
    blocks_left: int
    fills: int = 0


class Prefetcher:
    """Hands the steps of one epoch at a time to workers, as buffers and arenas become free.

    Parameters
    ----------
    ring : the free ones of `buffers`.
    n_arenas : windows that are decoded at the same time; 0: none needs to be.
    """

    def __init__(self, workers: Workers, ring: Ring, buffers: SharedBuffers, n_arenas: int) -> None:
        self._workers, self._ring, self._buffers, self._n_arenas = workers, ring, buffers, n_arenas
        self._steps: Iterator[_Step] = iter(())
        self._next: _Step | None = None
        self._order: deque[_Filling] = deque()
        self._by_buffer: dict[int, _Filling] = {}
        self._windows: dict[Window, _Decoding] = {}
        self._n_windows = 0
        self._under_way = 0
        self._ended = True

    def start(self, batches: Iterable[RankBatch]) -> None:
        """Turn to other batches; what is under way is waited for and dropped."""
        while self._under_way:
            self._settle(self._workers.done(wait=True))
        for filling in self._order:
            self._ring.give_back(filling.buffer)
        self._order, self._by_buffer, self._windows = deque(), {}, {}
        self._steps = _steps(batches, decode=self._n_arenas > 0)
        self._next, self._n_windows, self._ended = None, 0, False

    def next(self) -> tuple[int, BatchShape] | None:
        """The next batch: number of its buffer, and its shape. None at the end of the epoch.

        Raises
        ------
        BhiveError
            The reader's.
        TrainingError
            A worker died.
        """
        while True:
            self._settle(self._workers.done(wait=False))
            issued = self._issue()
            if self._order and not self._order[0].left:
                filling = self._order.popleft()
                del self._by_buffer[filling.buffer]
                return filling.buffer, filling.batch.shape
            if self._ended and not self._order:
                return None
            if not self._under_way and not issued:
                raise RuntimeError("no buffer is free, and none is being filled")
            self._settle(self._workers.done(wait=True))

    def _issue(self) -> bool:
        """Hand out what can be handed out; True if there was anything."""
        issued = False
        while self._workers.has_room():
            if self._next is None:
                self._next = next(self._steps, None)
            self._ended = self._next is None
            if self._next is None or not self._hand_out(self._next):
                break
            self._next, issued = None, True
        return issued

    def _hand_out(self, step: _Step) -> bool:
        """Hand out a step; False if it has to wait."""
        work = self._fill(step) if isinstance(step, _FillStep) else self._decode(*step)
        if isinstance(work, Decode | Fill):
            self._under_way += 1
            self._workers.submit(work)
        return work is not None

    def _fill(self, step: _FillStep) -> Work | bool | None:
        """What to hand out; True if there is nothing to do, None if the step has to wait."""
        window = None if step.part is None else step.batch.parts[step.part].window
        decoding = self._windows.get(window) if window is not None else None
        if decoding is not None and decoding.blocks_left:
            return None
        if not self._order or self._order[-1].batch is not step.batch:
            # a GPU is waited for only when nothing else could come: its steps would no longer queue up
            buffer = self._ring.take(wait=not self._order and not self._under_way)
            if buffer is None:
                return None
            step.batch.write_positions(positions_in(self._buffers.view(buffer), step.batch.shape.n_jets))
            self._order.append(_Filling(step.batch, buffer, len(step.batch.parts)))
            self._by_buffer[buffer] = self._order[-1]
        if step.part is None or window is None:
            return True
        if decoding is not None:
            decoding.fills += 1
        parts, filling = step.batch.parts, self._order[-1]
        first = sum(len(part.positions) for part in parts[: step.part])
        n_jets = len(parts[step.part].positions)
        return Fill(filling.buffer, step.batch.shape, first, n_jets, window, decoding.arena if decoding else -1)

    def _decode(self, window: Window, block: int) -> Work | None:
        if window not in self._windows:
            arena = self._n_windows % self._n_arenas
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
