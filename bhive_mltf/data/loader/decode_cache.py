"""Windows of sets that must be decoded: each block is decoded once, into memory that all workers share.

W: jets of a window; F: columns of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.layouts.column_planes import Plane
from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.buffers import Place, lay_out
from bhive_mltf.data.loader.collate import Candidates, Memory, Recipe, WindowTable
from bhive_mltf.data.loader.order import Window
from bhive_mltf.data.loader.windows import ArrowWindows, BlockRows, LoaderView
from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.errors import CorruptFileError
from bhive_mltf.interface import GroupInput, ModelInputs

# Padded rows of a block are large: a part of a block is decoded at a time.
_READ_JETS = 512


def read_columns(inputs: ModelInputs) -> dict[str, tuple[str, ...]]:
    """Columns to read per group: the model's, then those that only its four-vectors need."""
    return {
        group.name: (*group.columns, *(c for c in dict.fromkeys(group.four_vectors) if c not in group.columns))
        for group in inputs.groups
    }


class Arenas:
    """Decodes blocks into arenas, and makes tables of windows that were decoded.

    Arrow shards are decompressed and stay as they are stored; of other sets, features and four-vectors lie apart, each
    as the model wants it.

    Parameters
    ----------
    arrow : the windows of an Arrow set; None: the set is read block by block.
    """

    def __init__(self, view: LoaderView, arrow: ArrowWindows | None) -> None:
        self._view = view
        self._arrow = arrow
        self._recipes = arrow.recipes if arrow else {g.name: _recipe(g) for g in view.inputs.groups if g.name != GLOBAL}
        self._regions = self._make_regions()
        self._columns = read_columns(view.inputs)
        self._starts = lru_cache(8)(self._window_starts)
        self._buffers: Sequence[NDArray[np.uint8]] = ()

    @property
    def n_bytes(self) -> int:
        """Size of an arena that holds any window; what no window needs is never touched."""
        return max(region.stop for region in self._regions.values())

    def use(self, buffers: Sequence[NDArray[np.uint8]]) -> None:
        """The memory of each arena, uint8 of `n_bytes`; shared by all processes that decode and read."""
        self._buffers = buffers

    def _make_regions(self) -> dict[str, Place]:
        """Parts of an arena: rows of numbers."""
        jets = order.BLOCK * order.WINDOW
        wanted: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {"kinematics": (np.float32, (jets, 2))}
        if self._view.global_columns is not None:
            wanted[GLOBAL] = np.float32, (jets, len(self._view.global_columns))
        for name, recipe in self._recipes.items():
            rows = jets * self._view.source.schema.group(name).length
            wanted |= {plane.field: (plane.type.type, (rows, len(plane.positions))) for plane in recipe.planes}
        return lay_out(wanted)

    def decode(self, window: Window, block: int, arena: int) -> None:
        """Read one block of a window into its place.

        Raises
        ------
        BhiveError
            What the training set raises for a damaged shard.
        CorruptFileError
            Shard and index disagree.
        """
        run = order.block_range(self._view.jets, block)
        first = window.index(block) * order.BLOCK
        if self._arrow is None:
            for start in range(run.start, run.stop, _READ_JETS):
                part = range(start, min(start + _READ_JETS, run.stop))
                self._decode_any(window, part, first + start - run.start, self._buffers[arena])
        else:
            for piece in self._arrow.pieces([run]):
                self._decode_arrow(piece, window, first, self._buffers[arena])
                first += piece.end - piece.begin
        self._view.source.forget_pages()

    def _decode_arrow(self, piece: BlockRows, window: Window, first: int, buffer: NDArray[np.uint8]) -> None:
        found = cast("ArrowWindows", self._arrow).numbers(piece)
        for name, values in found.jets.items():
            self._regions[name].view(buffer)[first : first + len(values)] = values
        for name, recipe in self._recipes.items():
            for plane in recipe.planes:
                offsets, flat = found.candidates[plane.field]
                place = self._place(name, window, first, np.diff(offsets))
                rows = flat.reshape(-1, len(plane.positions))[offsets[0] : offsets[-1]]
                self._regions[plane.field].view(buffer)[place] = rows

    def _decode_any(self, window: Window, run: range, first: int, buffer: NDArray[np.uint8]) -> None:
        jets = self._view.source.read(run.start, run.stop, self._columns)
        self._regions["kinematics"].view(buffer)[first : first + len(jets)] = jets.kinematics
        for group in self._view.inputs.groups:
            values = jets.features[group.name]
            if group.name == GLOBAL:
                self._regions[GLOBAL].view(buffer)[first : first + len(jets)] = values
                continue
            place = self._place(group.name, window, first, jets.counts[group.name])
            self._regions[group.name].view(buffer)[place] = values[:, : len(group.columns)]
            if group.four_vectors:
                columns = [self._columns[group.name].index(c) for c in group.four_vectors]
                self._regions[_vectors(group)].view(buffer)[place] = values[:, columns]

    def _place(self, group: str, window: Window, first: int, counts: NDArray[Any]) -> slice:
        """Rows of an arena for the candidates of the jets from `first` on."""
        starts = self._starts(group, window)[first : first + len(counts) + 1]
        if not np.array_equal(np.diff(starts), counts):
            raise CorruptFileError(
                f"index and shards of the training set disagree on the number of candidates {group} in a block of "
                f"window {window}: build the training set again"
            )
        return slice(int(starts[0]), int(starts[-1]))

    def table(self, window: Window, arena: int) -> WindowTable:
        """The table of a window whose blocks are all decoded."""
        buffer = self._buffers[arena]
        runs = order.window_runs(self._view.jets, window)
        n_jets = sum(map(len, runs))
        jets: dict[str, NDArray[Any]] = self._view.index_columns(window)
        for name in ("kinematics", *([GLOBAL] if GLOBAL in self._regions else [])):
            jets[name] = self._regions[name].view(buffer)[:n_jets].copy()
        groups = {}
        for name, recipe in self._recipes.items():
            starts = self._starts(name, window)
            counts = np.minimum(np.diff(starts), self._view.inputs.group(name).length)
            begins = tuple(self._regions[p.field].offset + starts[:-1] * p.row_bytes for p in recipe.planes)
            groups[name] = Candidates(recipe, counts, begins)
        return WindowTable(Memory([buffer.data]), None, groups, jets, runs)

    def _window_starts(self, group: str, window: Window) -> NDArray[np.int64]:
        """Where each jet's candidates begin in an arena, and where the last ones end; int64 [W+1]."""
        return np.concatenate([[0], np.cumsum(self._view.counts(group, window))])


def _vectors(group: GroupInput) -> str:
    return f"{group.name} four-vectors"


def _recipe(group: GroupInput) -> Recipe:
    n_features = len(group.columns)
    planes = [Plane(group.name, tuple(range(n_features)))]
    if group.four_vectors:
        planes.append(Plane(_vectors(group), tuple(range(n_features, n_features + 4))))
    return Recipe.of(planes, range(n_features), range(n_features, n_features + len(group.four_vectors)))
