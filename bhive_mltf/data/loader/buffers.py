"""The memory of batches: buffers that are used again and again, and where the arrays of a batch lie in one.

A fresh buffer per batch costs more than filling it. A batch lies in one, so that processes pass it on by its number and
pinning it is one operation. Shared buffers have no name in the file system, so that they go with the last process that
maps them, however it ends. B: jets of this rank; N: candidates, padding included; F: columns.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import multiprocessing.reduction
import os
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bhive_mltf.interface import Batch, GroupBatch, ModelInputs

logger = logging.getLogger(__name__)

_PAGE = mmap.PAGESIZE
_ALIGNMENT = 64
_JET_COLUMNS: Mapping[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "position": (np.int64, ()),
    "target": (np.int64, ()),
    "weight": (np.float32, ()),
    "jet_id": (np.int64, (2,)),
    "process": (np.int64, ()),
    "kinematics": (np.float32, (2,)),
}
_TORCH = {np.int64: torch.int64, np.float32: torch.float32, np.bool_: torch.bool}
_BATCH_COLUMNS = tuple(name for name in _JET_COLUMNS if name != "position")


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
        """Let the GPU copy from here on its own; the pages are then all touched. A warning if CUDA refuses."""
        whole = np.frombuffer(self._map, np.uint8)
        cuda: Any = torch.cuda
        refusal = int(cuda.cudart().cudaHostRegister(whole.ctypes.data, whole.nbytes, 0))
        self.pinned = refusal == 0
        if self.pinned:
            weakref.finalize(self, _unpin, whole)
            return
        # CUDA keeps the error, and the next kernel of whoever would raise it
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda")
        logger.warning("CUDA does not pin the memory of batches (error %d): the GPU waits for their copies", refusal)


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

    def take(self, *, wait: bool = True) -> int | None:
        """A free buffer, or None; where there is none, `wait` for one that a GPU still copies from."""
        self._collect(wait)
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

    def copy(self, number: int, size: int, *, pin_memory: bool) -> Tensor:
        """A copy of the first bytes of a taken buffer, which is free again."""
        kept = torch.empty(size, dtype=torch.uint8, pin_memory=pin_memory)
        kept.numpy()[:] = self._buffers.view(number)[:size]
        self.give_back(number)
        return kept

    def _collect(self, wait: bool) -> None:
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
        while self._cooling and (self._cooling[0][1].query() or (wait and not self._free)):
            number, event = self._cooling.popleft()
            event.synchronize()
            self._free.append(number)


class Place(NamedTuple):
    """Where one array lies in a buffer."""

    shape: tuple[int, ...]
    dtype: type[np.generic]
    offset: int

    @property
    def stop(self) -> int:
        """Byte behind the last one."""
        return self.offset + prod(self.shape) * np.dtype(self.dtype).itemsize

    def view(self, buffer: NDArray[np.uint8]) -> NDArray[Any]:
        """The array."""
        return np.ndarray(self.shape, self.dtype, buffer, self.offset)

    def tensor(self, buffer: Tensor) -> Tensor:
        """The same as a tensor [...] in the storage of `buffer`, uint8.

        While the GPU copies from it, torch keeps pinned memory that it gave itself; it knows it by its storage, which a
        tensor of a numpy array does not have.
        """
        values = buffer[self.offset : self.stop]
        if not len(values):
            return buffer.new_empty(self.shape, dtype=_TORCH[self.dtype])
        return values.view(_TORCH[self.dtype]).view(self.shape)


def lay_out(arrays: Mapping[str, tuple[type[np.generic], tuple[int, ...]]]) -> dict[str, Place]:
    """Places of arrays, given by type and shape, one behind the other and aligned."""
    places: dict[str, Place] = {}
    end = 0
    for name, (kind, shape) in arrays.items():
        places[name] = Place(shape, kind, -(-end // _ALIGNMENT) * _ALIGNMENT)
        end = places[name].stop
    return places


@dataclass(frozen=True)
class BatchShape:
    """What decides where the arrays of a batch lie in its buffer.

    n_jets : of this rank.
    lengths : N per group of `inputs`.
    global_size : jets of the global batch.
    """

    n_jets: int
    lengths: tuple[int, ...]
    global_size: int

    def places(self, inputs: ModelInputs) -> Mapping[str, Place]:
        """Columns per jet; of each group `name`, `name/mask`, `name/counts`, if asked for `name/vectors`; aligned."""
        return _places(inputs, self.n_jets, self.lengths)

    def n_bytes(self, inputs: ModelInputs) -> int:
        """Bytes of the batch, from the front of its buffer."""
        return max(place.stop for place in self.places(inputs).values())


@lru_cache(256)
def _places(inputs: ModelInputs, n_jets: int, lengths: tuple[int, ...]) -> Mapping[str, Place]:
    wanted = {name: (kind, (n_jets, *shape)) for name, (kind, shape) in _JET_COLUMNS.items()}
    for group, length in zip(inputs.groups, lengths, strict=True):
        wanted[group.name] = np.float32, (n_jets, length, len(group.columns))
        wanted[f"{group.name}/mask"] = np.bool_, (n_jets, length)
        wanted[f"{group.name}/counts"] = np.int64, (n_jets,)
        if group.four_vectors:
            wanted[f"{group.name}/vectors"] = np.float32, (n_jets, length, 4)
    return lay_out(wanted)


@lru_cache(256)
def _copied_places(inputs: ModelInputs, n_jets: int, lengths: tuple[int, ...]) -> tuple[Mapping[str, Place], int, int]:
    """Where the columns per jet of a batch lie in a copy of a part of its buffer, and the ends of that part."""
    places = _places(inputs, n_jets, lengths)
    start, stop = places["target"].offset, places["kinematics"].stop
    return {name: places[name]._replace(offset=places[name].offset - start) for name in _BATCH_COLUMNS}, start, stop


def buffer_bytes(inputs: ModelInputs, n_jets: int) -> int:
    """Bytes that hold any batch of up to `n_jets` jets."""
    shape = BatchShape(n_jets, tuple(group.length for group in inputs.groups), n_jets)
    return shape.n_bytes(inputs)


def positions_in(buffer: NDArray[np.uint8], n_jets: int) -> NDArray[np.int64]:
    """Stored positions of the jets of a batch, at the front of its buffer."""
    return buffer[: 8 * n_jets].view(np.int64)


def unpack(
    buffer: NDArray[np.uint8] | Tensor, shape: BatchShape, inputs: ModelInputs, *, pin_memory: bool = False
) -> Batch:
    """The batch in a buffer; the tensors of its groups keep `buffer` alive.

    Columns per jet are copied: who keeps the targets of an epoch must not keep all of its features.
    """
    places = shape.places(inputs)
    copied, start, stop = _copied_places(inputs, shape.n_jets, shape.lengths)
    whole = buffer if isinstance(buffer, Tensor) else torch.from_numpy(buffer)
    jets = torch.empty(stop - start, dtype=torch.uint8, pin_memory=pin_memory).copy_(whole[start:stop])

    def tensor(name: str) -> Tensor:
        return places[name].tensor(whole)

    groups = {
        group.name: GroupBatch(
            features=tensor(group.name),
            mask=tensor(f"{group.name}/mask"),
            columns=group.columns,
            four_vectors=tensor(f"{group.name}/vectors") if group.four_vectors else None,
            counts=places[f"{group.name}/counts"].view(whole.numpy()).copy(),
        )
        for group in inputs.groups
    }
    columns = {name: place.tensor(jets) for name, place in copied.items()}
    return Batch(groups=groups, global_size=shape.global_size, **columns)
