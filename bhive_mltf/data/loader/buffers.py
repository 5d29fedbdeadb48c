"""Buffers that are used again and again: a fresh one per batch costs more than filling it.

Shared buffers have no name in the file system, so that they go with the last process that maps them, however it ends.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing.reduction
import os
import sys
import tempfile
import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_PAGE = mmap.PAGESIZE


class SharedBuffers:
    """Some buffers of one size. Pages that are never touched cost nothing.

    Parameters
    ----------
    shared : in memory that worker processes share, and picklable for a process that is being started; else in memory of
        this process, in large pages where the system has them: the first epoch is spared most page faults.
    """

    def __init__(self, number: int, size: int, *, shared: bool = True) -> None:
        self.number = number
        self.size = max(-(-size // _PAGE) * _PAGE, _PAGE)
        self.pinned = False
        if shared:
            self._file = _nameless_file()
            os.ftruncate(self._file, number * self.size)
            self._map = mmap.mmap(self._file, number * self.size)
        else:
            self._map = mmap.mmap(-1, number * self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError, AttributeError):
                self._map.madvise(mmap.MADV_HUGEPAGE)

    def __getstate__(self) -> dict[str, Any]:
        shared = multiprocessing.reduction.DupFd(self._file)
        return {"number": self.number, "size": self.size, "file": shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.number, self.size, self.pinned = state["number"], state["size"], False
        self._file = state["file"].detach()
        self._map = mmap.mmap(self._file, self.number * self.size)

    def __del__(self) -> None:
        # The map holds the memory; arrays may outlive this object.
        if hasattr(self, "_file"):
            os.close(self._file)

    def view(self, number: int) -> NDArray[np.uint8]:
        """A buffer, as an array of its own each time."""
        return np.frombuffer(self._map, np.uint8, self.size, number * self.size)

    def pin(self) -> None:
        """Let the GPU copy from here on its own; the pages are then all touched. Without effect if CUDA refuses."""
        whole = np.frombuffer(self._map, np.uint8)
        cuda: Any = torch.cuda
        self.pinned = int(cuda.cudart().cudaHostRegister(whole.ctypes.data, whole.nbytes, 0)) == 0
        if self.pinned:
            weakref.finalize(self, _unpin, whole)


def _unpin(whole: NDArray[np.uint8]) -> None:
    cuda: Any = torch.cuda
    cuda.synchronize()
    cuda.cudart().cudaHostUnregister(whole.ctypes.data)


def _nameless_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("bhive_mltf")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Ring:
    """Which buffers are free. One that was lent out is free again when nothing refers to it any more.

    The last one freed is the next one taken: its memory is still in the cache.
    """

    def __init__(self, buffers: SharedBuffers) -> None:
        self._buffers = buffers
        self._free = list(range(buffers.number))
        self._returned: deque[int] = deque()
        self._cooling: deque[tuple[int, Any]] = deque()
        self._lent: dict[int, weakref.ref[Any]] = {}

    @property
    def n_lent(self) -> int:
        """Buffers that somebody refers to."""
        return len(self._lent)

    def take(self) -> int | None:
        """A free buffer, or None."""
        self._collect()
        return self._free.pop() if self._free else None

    def give_back(self, number: int) -> None:
        """Free a buffer that was taken and not lent."""
        self._free.append(number)

    def lend(self, number: int) -> NDArray[np.uint8]:
        """The taken buffer as an array; it is free again when the array and all that shares its memory are gone."""
        array = self._buffers.view(number)
        lent, returned = self._lent, self._returned

        def gone(_: object) -> None:
            # May run at any moment: nothing but thread-safe containers here.
            lent.pop(number, None)
            returned.append(number)

        self._lent[number] = weakref.ref(array, gone)
        return array

    def _collect(self) -> None:
        while self._returned:
            number = self._returned.popleft()
            if self._buffers.pinned:
                # A copy to the GPU may be under way still: it lies before this event on its stream.
                cuda: Any = torch.cuda
                event = cuda.Event()
                event.record()
                self._cooling.append((number, event))
            else:
                self._free.append(number)
        while self._cooling and (self._cooling[0][1].query() or not self._free):
            number, event = self._cooling.popleft()
            event.synchronize()
            self._free.append(number)
