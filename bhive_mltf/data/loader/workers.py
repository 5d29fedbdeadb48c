"""Reading of batches, in this process or in loader workers.

The process that trains plans the batches and writes each one's jet positions into its buffer; a worker keeps no state
but tables of the windows that it read last. So an epoch, a restart or a rank is nothing that a worker must know.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.buffers import BatchShape, SharedBuffers
from bhive_mltf.data.loader.collate import Collator, WindowTable
from bhive_mltf.data.loader.decode_cache import Arenas
from bhive_mltf.data.loader.order import Window
from bhive_mltf.data.loader.windows import ArrowWindows, LoaderView, MappedWindows
from bhive_mltf.errors import BhiveError

_WATCH_S = 1.0
_TABLES = 3


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
    arena : where the window was decoded; -1: it needs no decoding.
    """

    buffer: int
    shape: BatchShape
    first: int
    n_jets: int
    window: Window
    arena: int


Work = Decode | Fill


class BatchReader:
    """Does the work, in whatever process; picklable.

    Parameters
    ----------
    n_buffers, buffer_bytes : of batches.
    n_arenas : windows that are decoded at the same time, where they must be.
    shared : other processes do work too.
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
        self._mapped = None
        if decoder is not None and self.arenas is not None:
            decoder.use([self.arenas.view(number) for number in range(self.arenas.number)])
        elif arrow is not None:
            self._mapped = MappedWindows(self._view, arrow)
        self._collator = Collator(self._view.inputs)
        self._tables: OrderedDict[tuple[Window, int], WindowTable] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"view": self._view, "buffers": self.buffers, "arenas": self.arenas}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._view, self.buffers, self.arenas = state["view"], state["buffers"], state["arenas"]
        arrow = ArrowWindows.of(self._view)
        self._open(arrow, None if self.arenas is None else Arenas(self._view, arrow))

    def do(self, work: Work) -> None:
        """Decode or fill."""
        if isinstance(work, Fill):
            self._fill(work)
        elif self._decoder is not None:
            self._decoder.decode(work.window, work.block, work.arena)

    def _fill(self, work: Fill) -> None:
        buffer = self._buffers[work.buffer]
        last = work.first + work.n_jets
        positions = positions_in(buffer, work.shape.n_jets)[work.first : last]
        rows = order.window_rows(self._view.jets, work.window, positions)
        self._collator.fill(buffer, work.shape, work.first, self.table(work.window, work.arena), rows)

    def table(self, window: Window, arena: int) -> WindowTable:
        """The table of a window; the last ones are kept."""
        key = window, arena
        table = self._tables.get(key)
        if table is None:
            while len(self._tables) >= _TABLES:
                self._tables.popitem(last=False)
            table = self._tables[key] = self._make_table(window, arena)
        return table

    def forget_tables(self) -> None:
        """Make the tables anew; for windows that are decoded again outside of a schedule."""
        self._tables.clear()

    def _make_table(self, window: Window, arena: int) -> WindowTable:
        if self._mapped is not None:
            return self._mapped.table(window)
        if self._decoder is None:
            raise RuntimeError("there is neither a mapped file nor an arena")
        return self._decoder.table(window, arena)


def positions_in(buffer: NDArray[np.uint8], n_jets: int) -> NDArray[np.int64]:
    """Stored positions of the jets of a batch, at the front of its buffer."""
    return buffer[: 8 * n_jets].view(np.int64)


def rank_slice(n: int, rank: int, world_size: int) -> slice:
    """The jets of `rank` among the `n` of a global batch: contiguous, sizes differ by one at most."""
    return slice(rank * n // world_size, (rank + 1) * n // world_size)


def work_for(connection: Connection, reader: BatchReader, parent: int, name: str) -> None:
    """What a worker process does: one piece of work after another, until the other end is closed.

    Answers each with None, or with the error of a user; another error ends the process with its traceback.
    """
    WorkerStart(parent)(name)
    torch.set_num_threads(1)
    while True:
        try:
            work: Work = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        answer: BhiveError | None = None
        try:
            reader.do(work)
        except BhiveError as error:
            answer = error
        connection.send(answer)


@dataclass(frozen=True)
class WorkerStart:
    """What a loader worker does first; `parent` is the process that started it."""

    parent: int

    def __call__(self, name: str) -> None:
        """Leave signals to the parent, and end with it."""
        # The batch system signals every process of a job, and a terminal all of its foreground: the
        # parent decides what that means, and it needs batches to come to a step boundary.
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        if sys.platform != "darwin":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=self._watch, name=f"parent of {name}", daemon=True).start()

    def _watch(self) -> None:
        """End this process when the parent is gone or wants it to."""
        while os.getppid() == self.parent:
            if sys.platform == "darwin":
                time.sleep(_WATCH_S)
                continue
            received = signal.sigtimedwait([signal.SIGTERM], _WATCH_S)
            if received is not None and received.si_pid == self.parent:
                break
        os._exit(0)
