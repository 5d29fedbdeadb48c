"""From planned batches to filled buffers, in this process or in a loader worker.

A reader keeps no state but the windows that it read last: an epoch, a restart or a rank is nothing that it must know.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.loader.batch_plan import RankBatch
from bhive_mltf.data.loader.buffers import BatchShape, SharedBuffers, positions_in
from bhive_mltf.data.loader.collate import Collator, WindowTable
from bhive_mltf.data.loader.decode_cache import Arenas
from bhive_mltf.data.loader.order import Window
from bhive_mltf.data.loader.windows import ArrowWindows, LoaderView, MappedWindows

_TABLES = 3
# s; a mapped part of a file that was read so long ago may be away again, and is read anew before it is touched.
KEPT_S = 1.0


@dataclass(frozen=True)
class Decode:
    """Decode one block of a window into an arena."""

    window: Window
    block: int
    arena: int


@dataclass(frozen=True)
class Fill:
    """Write jets of one window into a batch: those from `first` on, `n_jets` of them.

    buffer : number of the batch's buffer, which holds their stored positions.
    arena : where the window was decoded; any number if it needs no decoding.
    """

    buffer: int
    shape: BatchShape
    first: int
    n_jets: int
    window: Window
    arena: int


Work = Decode | Fill


class BatchReader:
    """Reads jets into buffers; picklable, so that workers can have a copy.

    Parameters
    ----------
    n_buffers, buffer_bytes : of batches.
    n_arenas : windows that are decoded at the same time, where they must be.
    shared : workers read too.
    """

    def __init__(
        self, view: LoaderView, n_buffers: int, buffer_bytes: int, n_arenas: int, *, shared: bool = True
    ) -> None:
        arrow = ArrowWindows.of(view)
        decoder = None if arrow and not arrow.compressed else Arenas(view, arrow)
        self.buffers = SharedBuffers(n_buffers, buffer_bytes, shared=shared)
        self.arenas = None if decoder is None else SharedBuffers(n_arenas, decoder.n_bytes, shared=shared)
        self._view = view
        self._open(arrow, decoder)

    def _open(self, arrow: ArrowWindows | None, decoder: Arenas | None) -> None:
        self._buffers = [self.buffers.view(number) for number in range(self.buffers.number)]
        self._decoder = decoder
        self._decoded: Window | None = None
        self._mapped = None
        if decoder is not None and self.arenas is not None:
            decoder.use([self.arenas.view(number) for number in range(self.arenas.number)])
        elif arrow is not None:
            self._mapped = MappedWindows(self._view, arrow)
        self._collator = Collator(self._view.inputs)
        self._tables: OrderedDict[tuple[Window, int], WindowTable] = OrderedDict()
        self._read_at: dict[tuple[Window, int], float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"view": self._view, "buffers": self.buffers, "arenas": self.arenas}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._view, self.buffers, self.arenas = state["view"], state["buffers"], state["arenas"]
        arrow = ArrowWindows.of(self._view)
        self._open(arrow, None if self.arenas is None else Arenas(self._view, arrow))

    def read(self, batch: RankBatch, buffer: int) -> None:
        """Read a whole batch, window by window."""
        first = 0
        for part in batch.parts:
            self.decode(part.window)
            self.fill(buffer, batch.shape, first, part.positions, self.table(part.window))
            first += len(part.positions)

    def decode(self, window: Window) -> None:
        """Decode a window into the first arena, if it needs decoding and is not the last one that was."""
        if self._decoder is None or window == self._decoded:
            return
        self._decoded = None
        for block in window:
            self._decoder.decode(window, block, 0)
        self._decoded = window

    def do(self, work: Work) -> None:
        """A worker's share: decode one block, or fill in the jets of one window."""
        if isinstance(work, Decode):
            if self._decoder is not None:
                self._decoder.decode(work.window, work.block, work.arena)
            return
        positions = positions_in(self._buffers[work.buffer], work.shape.n_jets)[work.first : work.first + work.n_jets]
        self.fill(work.buffer, work.shape, work.first, positions, self.table(work.window, work.arena))

    def fill(
        self, buffer: int, shape: BatchShape, first: int, positions: NDArray[np.int64], table: WindowTable
    ) -> None:
        """Write jets of a window, at these stored positions, to the jets of a batch from `first` on."""
        self._collator.fill(self._buffers[buffer], shape, first, table, table.rows(positions))

    def table(self, window: Window, arena: int = 0) -> WindowTable:
        """The table of a window; the last ones are kept.

        Raises
        ------
        CorruptFileError
            A block is not what was written.
        """
        key = window, arena
        table = self._tables.get(key)
        now = time.monotonic()
        if table is None:
            while len(self._tables) >= _TABLES:
                del self._read_at[self._tables.popitem(last=False)[0]]
            table = self._tables[key] = self._make_table(window, arena)
            self._read_at[key] = now
        elif self._mapped is not None and now - self._read_at[key] > KEPT_S:
            self._mapped.populate(window)
            self._read_at[key] = now
        return table

    def _make_table(self, window: Window, arena: int) -> WindowTable:
        if self._mapped is not None:
            return self._mapped.table(window)
        if self._decoder is None:
            raise RuntimeError("there is neither a mapped file nor an arena")
        return self._decoder.table(window, arena)
