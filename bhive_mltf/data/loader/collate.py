"""Candidates of chosen jets, from wherever they lie to the padded arrays of a batch.

The copies are made by `pad_jets.c` where the installation could build it, else in numpy, more slowly.
J: jets chosen; W: jets of a window, in stored order; N: candidates, padding included; F: columns wanted.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.machinery import EXTENSION_SUFFIXES
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.layouts.column_planes import Plane
from bhive_mltf.data.loader.buffers import BatchShape
from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.errors import CorruptFileError
from bhive_mltf.interface import ModelInputs

logger = logging.getLogger(__name__)

_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64
PAD_JETS_SOURCE = Path(__file__).with_name("pad_jets.c")


def load_pad_jets(path: Path | None) -> Callable[..., int] | None:
    """The function `pad_jets` of a library; None if there is none that this machine can load."""
    if path is None:
        return None
    try:
        function: Callable[..., int] = ctypes.CDLL(str(path)).pad_jets
    except (OSError, AttributeError) as error:
        logger.debug("'%s' is not used: %s", path, error)
        return None
    arguments = (*[_ADDRESS] * 5, *[_NUMBER] * 2, _ADDRESS, *[_NUMBER] * 2, _ADDRESS)
    function.restype, function.argtypes = _NUMBER, arguments  # type: ignore[attr-defined]
    return function


# what the installation built beside the source, where it found a compiler
_BUILT = (PAD_JETS_SOURCE.with_name(f"_pad_jets{suffix}") for suffix in EXTENSION_SUFFIXES)
PAD_JETS = load_pad_jets(next((path for path in _BUILT if path.exists()), None))
# Numbers of candidates are stored in 16 bits.
_STEPS = np.arange(2**16, dtype=np.uint16)


class Scratch:
    """Arrays that are used again and again, so that no fresh memory is touched."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def get(self, name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
        """An array with any content; the same memory for the same name, which belongs to one `kind`."""
        size = prod(shape)
        array = self._arrays.get(name)
        if array is None or array.size < size:
            array = self._arrays[name] = np.empty(size + size // 8, kind)
        return array[:size].reshape(shape)


@dataclass(frozen=True)
class Picked:
    """Columns of a stored plane that go to the columns `target` of an array.

    source : int64 [F], positions in the plane; None: the plane as it is.
    """

    plane: int
    source: NDArray[np.int64] | None
    target: NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """How the planes of a group become features and four-vectors.

    planes : those needed.
    features, vectors : where their columns come from; `vectors` is empty if they are not asked for.
    """

    planes: tuple[Plane, ...]
    features: tuple[Picked, ...]
    vectors: tuple[Picked, ...]

    @classmethod
    def of(cls, stored: Sequence[Plane], features: Sequence[int], vectors: Sequence[int]) -> Recipe:
        """The recipe for columns given by their positions in the group."""
        wanted = {*features, *vectors}
        # Of a group without wanted columns, the number of candidates counts still.
        planes = tuple(p for p in stored if wanted.intersection(p.positions)) or tuple(stored[:1])
        return cls(planes, _picked(planes, features), _picked(planes, vectors))


def _picked(planes: Sequence[Plane], wanted: Sequence[int]) -> tuple[Picked, ...]:
    picked = []
    for number, plane in enumerate(planes):
        target = [i for i, column in enumerate(wanted) if column in plane.positions]
        if target:
            source = [plane.positions.index(wanted[i]) for i in target]
            whole = source == list(range(len(plane.positions)))
            picked.append(Picked(number, None if whole else np.array(source, np.int64), np.array(target)))
    return tuple(picked)


class Memory:
    """Pieces of memory that hold candidates.

    addresses, sizes : int64, of the pieces; `tables`: where these two arrays lie.
    """

    def __init__(self, views: Sequence[memoryview]) -> None:
        self.views = views
        self.addresses = np.array([np.frombuffer(view, np.uint8).ctypes.data for view in views], np.int64)
        self.sizes = np.array([view.nbytes for view in views], np.int64)
        self.tables = self.addresses.ctypes.data, self.sizes.ctypes.data


@dataclass(frozen=True)
class Chosen:
    """Jets to be gathered.

    where : int64 [J], the piece of `memory` that holds each jet; None: all in the first.
    begins : per plane, int64 [J]: first byte of each jet in its piece.
    counts : int64 [J], candidates to take.
    stored : by plane, its candidates [S,W] jet behind jet, as far as they were needed.
    """

    memory: Memory
    where: NDArray[np.int64] | None
    begins: Sequence[NDArray[np.int64]]
    counts: NDArray[np.int64]
    stored: dict[int, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: NDArray[Any], counts: NDArray[np.int64]) -> Chosen:
        """All jets of an array [S,W] of candidates, jet behind jet."""
        begins = (np.cumsum(counts) - counts) * (values.itemsize * values.shape[1])
        return cls(Memory([values.reshape(-1).view(np.uint8).data]), None, [begins], counts)


def assemble(
    jets: Chosen, recipe: Recipe, picked: Sequence[Picked], out: NDArray[np.float32], scratch: Scratch
) -> None:
    """Write the wanted columns of the chosen jets to `out` [J,N,F], contiguous; padding zero.

    Raises
    ------
    CorruptFileError
        The candidates of a jet do not lie in its memory.
    """
    if not (out.size and jets.counts.any()):
        out[:] = 0
        return
    plane, first = recipe.planes[picked[0].plane], picked[0]
    if len(picked) == 1 and not plane.half and (first.source is None or PAD_JETS is not None):
        copy_candidates(jets, first.plane, plane, out, length=out.shape[1], columns=first.source)
        return
    n_candidates = int(jets.counts.sum())
    values = scratch.get("values", (n_candidates, out.shape[2]), np.dtype(np.float32))
    for pick in picked:
        if pick.plane not in jets.stored:
            plane = recipe.planes[pick.plane]
            stored = scratch.get(plane.field, (n_candidates, len(plane.positions)), plane.type)
            copy_candidates(jets, pick.plane, plane, stored)
            jets.stored[pick.plane] = stored
        _pick(jets.stored[pick.plane], pick, values)
    whole = Plane("", tuple(range(out.shape[2])))
    copy_candidates(Chosen.of(values, jets.counts), 0, whole, out, length=out.shape[1])


def _pick(stored: NDArray[Any], pick: Picked, values: NDArray[np.float32]) -> None:
    """Columns of candidates [S,W] to those of `values` [S,F]; torch does it many times faster than numpy."""
    # a conversion copies candidates too, and has no use for torch
    import torch

    found, target = torch.from_numpy(stored), torch.from_numpy(values)
    if pick.source is not None:
        found = torch.index_select(found, 1, torch.from_numpy(pick.source))
    if len(pick.target) == len(values[0]):
        target.copy_(found)
    else:
        target[:, pick.target] = found.to(torch.float32)


def copy_candidates(
    jets: Chosen,
    number: int,
    plane: Plane,
    out: NDArray[Any],
    *,
    length: int = -1,
    columns: NDArray[np.int64] | None = None,
) -> None:
    """Copy the candidates of plane number `number` to `out`, contiguous.

    Parameters
    ----------
    length : candidates per jet in `out`, missing ones zero; -1: jet behind jet, without padding.
    columns : int64 [F], those to take of a plane of float32, compiled only; None: all.
    """
    begins, counts, memory = jets.begins[number], jets.counts, jets.memory
    if PAD_JETS is None:
        fits = _copy_one_by_one(jets, begins, plane.row_bytes, out, length)
    else:
        where = None if jets.where is None else jets.where.ctypes.data
        starts, numbers = begins.ctypes.data, counts.ctypes.data
        chosen = (None, 0) if columns is None else (columns.ctypes.data, len(columns))
        wrong = PAD_JETS(
            *memory.tables, where, starts, numbers, len(begins), plane.row_bytes, *chosen, length, out.ctypes.data
        )
        fits = wrong < 0
    if not fits:
        raise CorruptFileError(
            f"the candidates {plane.field} of a jet do not lie in the shard of the training set that should hold them: "
            "build the training set again"
        )


def _copy_one_by_one(jets: Chosen, begins: NDArray[np.int64], row_bytes: int, out: NDArray[Any], length: int) -> bool:
    """What `pad_jets.c` does for whole candidates; False if a jet does not fit."""
    sizes = jets.counts * row_bytes
    where = np.zeros(len(begins), np.int64) if jets.where is None else jets.where
    if (begins < 0).any() or (begins + sizes > jets.memory.sizes[where]).any() or 0 <= length < jets.counts.max():
        return False
    if length < 0:
        rooms = np.cumsum(sizes) - sizes
    else:
        out.fill(0)
        rooms = np.arange(len(begins)) * (length * row_bytes)
    target = out.reshape(-1).view(np.uint8).data
    places = rooms.tolist(), (rooms + sizes).tolist(), begins.tolist(), (begins + sizes).tolist()
    # One copy per jet: a jet's candidates lie next to each other.
    for piece, first, last, begin, end in zip(where.tolist(), *places, strict=True):
        target[first:last] = jets.memory.views[piece][begin:end]
    return True


@dataclass(frozen=True)
class Candidates:
    """Candidates of one group.

    counts : int64 [W], stored candidates, at most as many as the model reads.
    begins : per plane of the recipe, int64 [W]: first byte of each jet in its piece of memory.
    """

    recipe: Recipe
    counts: NDArray[np.int64]
    begins: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class WindowTable:
    """All that a batch takes from a window.

    memory, where : pieces of memory, and the number of each jet's [W]; None: there is one piece.
    groups : candidates by group.
    jets : columns per jet by name: `global` (the model's columns) and those of `Batch`.
    runs : stored positions of the jets, ascending.
    """

    memory: Memory
    where: NDArray[np.int64] | None
    groups: Mapping[str, Candidates]
    jets: Mapping[str, NDArray[Any]]
    runs: Sequence[range]

    @cached_property
    def _starts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        starts = np.array([run.start for run in self.runs], np.int64)
        return starts, starts - np.cumsum([0, *map(len, self.runs[:-1])])

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the jets at these stored positions [J]."""
        starts, shifts = self._starts
        return positions - shifts[np.searchsorted(starts, positions, side="right") - 1]


class Collator:
    """Writes jets of a window into the buffer of a batch."""

    def __init__(self, inputs: ModelInputs) -> None:
        self._inputs = inputs
        self._scratch = Scratch()

    def fill(
        self, buffer: NDArray[np.uint8], shape: BatchShape, first: int, table: WindowTable, jets: NDArray[np.int64]
    ) -> None:
        """Write the jets `jets` (rows of the window) to the jets of the batch from `first` on."""
        places = shape.places(self._inputs)
        here = slice(first, first + len(jets))

        def out(name: str) -> NDArray[Any]:
            return places[name].view(buffer)[here]

        for name, values in table.jets.items():
            if name == GLOBAL:
                out(GLOBAL)[:, 0] = values[jets]
                out(f"{GLOBAL}/mask")[:] = True
                out(f"{GLOBAL}/counts")[:] = 1
            else:
                values.take(jets, axis=0, out=out(name), mode="clip")
        for name in table.groups:
            keys = (name, *(f"{name}/{kind}" for kind in ("mask", "counts", "vectors")))
            arrays = {key: out(key) for key in keys if key in places}
            self._fill_group(name, arrays, table, jets)

    def _fill_group(
        self, name: str, out: Mapping[str, NDArray[Any]], table: WindowTable, jets: NDArray[np.int64]
    ) -> None:
        candidates = table.groups[name]
        recipe, counts = candidates.recipe, candidates.counts[jets]
        where = None if table.where is None else table.where[jets]
        chosen = Chosen(table.memory, where, [begins[jets] for begins in candidates.begins], counts)
        mask = out[f"{name}/mask"]
        out[f"{name}/counts"][:] = counts
        np.less(_STEPS[: mask.shape[1]], counts.astype(np.uint16)[:, None], out=mask)
        for target, picked in ((name, recipe.features), (f"{name}/vectors", recipe.vectors)):
            if picked:
                assemble(chosen, recipe, picked, out[target], self._scratch)
