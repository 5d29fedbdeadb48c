"""The jets of a window: where their candidates lie, and their columns per jet, ready to be gathered into batches.

W: jets of a window, in stored order.
"""

from __future__ import annotations

import contextlib
import mmap
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.dataset import Dataset
from bhive_mltf.data.layouts.arrow_reader import ArrowShard
from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.collate import Candidates, Memory, Recipe, WindowTable
from bhive_mltf.data.loader.order import Window
from bhive_mltf.data.loader.targets import Unmatched, class_targets, resolve_unmatched
from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.errors import CorruptFileError
from bhive_mltf.interface import ModelInputs


@dataclass(frozen=True)
class LoaderView:
    """What a loader takes from a training set, and how.

    jets : range of stored positions.
    unmatched : what becomes of jets in no class.
    weight_factors : process factors if the batch weight is the sampling probability, None if it is 1.
    """

    source: Dataset
    jets: range
    inputs: ModelInputs
    unmatched: Unmatched
    weight_factors: NDArray[np.float64] | None

    def index_columns(self, window: Window) -> dict[str, NDArray[Any]]:
        """Columns of `Batch` [W] that the index holds."""
        index, runs = self.source.index, order.window_runs(self.jets, window)
        self.source.populate_index(runs)
        process = _along(index.process, runs).astype(np.int64)
        targets = class_targets(_along(index.truth_bits, runs), self.source.schema.truths, self.inputs.classes)
        weight = np.ones(len(process), np.float32)
        if self.weight_factors is not None:
            probability = order.sampling_probability(_along(index.weight, runs), process, self.weight_factors)
            weight = probability.astype(np.float32)
        jet_id = np.stack([_along(index.file, runs).astype(np.int64), _along(index.entry, runs)], axis=1)
        target = resolve_unmatched(targets, self.unmatched)
        return {"target": target, "weight": weight, "jet_id": jet_id, "process": process}

    def counts(self, group: str, window: Window) -> NDArray[np.int64]:
        """Stored candidates [W] of a group, by the index."""
        values = self.source.index.counts(group)
        return _along(values, order.window_runs(self.jets, window)).astype(np.int64)

    def stored_positions(self, group: str, columns: Sequence[str]) -> list[int]:
        """Positions of columns in their group."""
        stored = self.source.schema.group(group).columns
        return [stored.index(column) for column in columns]

    @property
    def global_columns(self) -> list[int] | None:
        """Positions of the columns of `global` that the model reads; None if it reads none of that group."""
        for group in self.inputs.groups:
            if group.name == GLOBAL:
                return self.stored_positions(GLOBAL, group.columns)
        return None


def _along(values: NDArray[Any], runs: Sequence[range]) -> NDArray[Any]:
    """Values at the stored positions of some runs, in memory."""
    return np.concatenate([values[run.start : run.stop] for run in runs])


_PAGE = mmap.PAGESIZE
_MAX_MAPPED = 128 << 20


class BlockRows(NamedTuple):
    """Rows [begin, end) of a block of a shard."""

    shard: ArrowShard
    block: int
    begin: int
    end: int


class Numbers(NamedTuple):
    """Columns of a piece.

    jets : columns per jet, by name.
    candidates : by the name of a plane: offsets of the piece's jets in the block, and all numbers of the block as they
        lie in memory.
    """

    jets: Mapping[str, NDArray[Any]]
    candidates: Mapping[str, tuple[NDArray[np.int64], NDArray[Any]]]


class ArrowWindows:
    """Reads windows of an Arrow set.

    recipes : by group of candidates.
    """

    def __init__(self, view: LoaderView) -> None:
        self._view = view
        self.recipes = self._recipes()
        self._global_columns = view.global_columns
        planes = (plane.field for recipe in self.recipes.values() for plane in recipe.planes)
        self._fields = {"kinematics", *planes, *([GLOBAL] if self._global_columns is not None else [])}

    @classmethod
    def of(cls, view: LoaderView) -> ArrowWindows | None:
        """The windows of a set in Arrow shards; None for another one, or one without jets."""
        return cls(view) if len(view.source) and view.source.arrow_shard(0) is not None else None

    def _recipes(self) -> dict[str, Recipe]:
        """All shards of a set are laid out alike."""
        planes = self._shard(0).planes
        return {
            group.name: Recipe.of(
                planes[group.name],
                self._view.stored_positions(group.name, group.columns),
                self._view.stored_positions(group.name, group.four_vectors),
            )
            for group in self._view.inputs.groups
            if group.name != GLOBAL
        }

    @property
    def compressed(self) -> bool:
        """True if the numbers must be decoded."""
        return bool(self._shard(0).compressed)

    def _shard(self, number: int) -> ArrowShard:
        shard = self._view.source.arrow_shard(number)
        if shard is None:
            raise CorruptFileError(f"shard {number} of the training set is of another kind: build it again")
        return shard

    def pieces(self, runs: Iterable[range]) -> Iterator[BlockRows]:
        """Runs of stored positions, cut at the ends of shards and blocks."""
        edges = self._view.source.shard_edges
        for run in runs:
            first, last = np.searchsorted(edges, [run.start, run.stop - 1], side="right") - 1
            for number in range(int(first), int(last) + 1):
                shard, low = self._shard(number), int(edges[number])
                start, stop = max(run.start, low) - low, min(run.stop, int(edges[number + 1])) - low
                first_block, last_block = np.searchsorted(shard.edges, [start, stop - 1], side="right") - 1
                for block in range(int(first_block), int(last_block) + 1):
                    base = int(shard.edges[block])
                    yield BlockRows(shard, block, max(start - base, 0), min(stop, int(shard.edges[block + 1])) - base)

    def numbers(self, piece: BlockRows) -> Numbers:
        """The columns of a piece that the model reads.

        Raises
        ------
        CorruptFileError
            The block is not what was written, or its planes disagree.
        """
        jets: dict[str, NDArray[Any]] = {}
        candidates: dict[str, tuple[NDArray[np.int64], NDArray[Any]]] = {}
        for name, (offsets, flat) in piece.shard.raw(piece.block, self._fields).items():
            if offsets is not None:
                candidates[name] = offsets[piece.begin : piece.end + 1].astype(np.int64), flat
                continue
            values = flat.reshape(piece.shard.n_rows(piece.block), -1)[piece.begin : piece.end]
            jets[name] = values[:, self._global_columns] if name == GLOBAL else values
        for recipe in self.recipes.values():
            first, *others = (candidates[plane.field][0] for plane in recipe.planes)
            if not all(np.array_equal(first, other) for other in others):
                raise CorruptFileError(
                    f"'{piece.shard.path}' has columns of different lengths in block {piece.block}: build the training "
                    "set again"
                )
        return Numbers(jets, candidates)


class MappedWindows:
    """Makes the tables of windows that need no decoding."""

    def __init__(self, view: LoaderView, windows: ArrowWindows) -> None:
        self._view = view
        self._windows = windows
        self._memory: dict[ArrowShard, memoryview] = {}
        self._pages = _Pages()

    def table(self, window: Window) -> WindowTable:
        """The table of a window; CorruptFileError for a block that is not what was written."""
        runs = order.window_runs(self._view.jets, window)
        pieces = list(self._windows.pieces(runs))
        numbers = [self._windows.numbers(piece) for piece in pieces]
        shards = list(dict.fromkeys(piece.shard for piece in pieces))
        for shard in shards:
            self._memory.setdefault(shard, memoryview(shard.map))
        self._pages.use(
            (piece.shard.map, piece.shard.address(flat), flat.nbytes)
            for piece, found in zip(pieces, numbers, strict=True)
            for _, flat in found.candidates.values()
        )
        jets = self._view.index_columns(window)
        for name in numbers[0].jets:
            jets[name] = np.concatenate([found.jets[name] for found in numbers])
        where = np.repeat([shards.index(p.shard) for p in pieces], [p.end - p.begin for p in pieces])
        return WindowTable(
            memory=Memory([self._memory[shard] for shard in shards]),
            where=where if len(shards) > 1 else None,
            groups={name: self._candidates(name, pieces, numbers) for name in self._windows.recipes},
            jets=jets,
            runs=runs,
        )

    def populate(self, window: Window) -> None:
        """Have the parts of the files that a window's table points to read once more.

        Raises
        ------
        CorruptFileError, DiskError
            They cannot be read any more.
        """
        for piece in self._windows.pieces(order.window_runs(self._view.jets, window)):
            self._windows.numbers(piece)

    def _candidates(self, name: str, pieces: list[BlockRows], numbers: list[Numbers]) -> Candidates:
        recipe = self._windows.recipes[name]
        counts = np.concatenate([np.diff(found.candidates[recipe.planes[0].field][0]) for found in numbers])
        begins = []
        for plane in recipe.planes:
            parts = []
            for piece, found in zip(pieces, numbers, strict=True):
                offsets, flat = found.candidates[plane.field]
                parts.append(piece.shard.address(flat) + offsets[:-1] * plane.row_bytes)
            begins.append(np.concatenate(parts))
        return Candidates(recipe, np.minimum(counts, self._view.inputs.group(name).length), tuple(begins))


class _Pages:
    """Which parts of files this process has mapped, so that they stay few; the system keeps their content."""

    def __init__(self) -> None:
        self._parts: OrderedDict[tuple[mmap.mmap, int, int], int] = OrderedDict()
        self._n_bytes = 0
        self._turn = 0

    def use(self, parts: Iterable[tuple[mmap.mmap, int, int]]) -> None:
        """Note parts (first byte, size) that are mapped now; forget those that neither these nor the last needed."""
        self._turn += 1
        for file, start, size in parts:
            begin = start // _PAGE * _PAGE
            part = file, begin, start + size - begin
            if part not in self._parts:
                self._n_bytes += part[2]
            self._parts[part] = self._turn
            self._parts.move_to_end(part)
        while self._n_bytes > _MAX_MAPPED and next(iter(self._parts.values())) < self._turn - 1:
            (file, begin, size), _ = self._parts.popitem(last=False)
            self._n_bytes -= size
            with contextlib.suppress(OSError, AttributeError):
                file.madvise(mmap.MADV_DONTNEED, begin, size)
