"""From the branches of a tree to accepted jets: selection, labels, custom features, truncation.

J: jets of a chunk; J': accepted ones; S: candidates; F: columns; K: truth labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.config import Config
from bhive_mltf.config.schema import Group
from bhive_mltf.data.block import JetBlock, first_rows, strip
from bhive_mltf.data.manifest import Accounting
from bhive_mltf.data.ntuples.root_reader import Chunk, Jagged, RootTree
from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.errors import DataError

Keys = Callable[[NDArray[np.int64]], NDArray[np.uint64]]
REASONS = ("outside_bins", "no_truth", "non_finite")


class Converter:
    """Turns chunks of one config's branches into blocks of accepted jets.

    A jet is accepted when pt and eta lie in [first edge, last edge) of the bins, at least one truth label holds, and
    every number that the training set would store of it is finite, after the config's `non_finite`.

    lost : column -> jets of the chunks converted so far that are left out for a number in it that is not finite, per
        truth label and, last, in all, int64 [K+1]; "" counts each jet once. Whoever counts anew replaces it.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._custom = {
            group.name: [(feature.name, feature.parse()) for feature in group.custom] for group in config.groups
        }
        self.lost: dict[str, NDArray[np.int64]] = {}
        # Kept from chunk to chunk: fresh memory costs more than what is done in it.
        self._scratch = np.empty(0, np.float32)

    def check(self, tree: RootTree) -> None:
        """Refuse a tree whose branches have the wrong shape: numbers for lists, or lists for numbers.

        Raises
        ------
        DataError
            Names branch, file and what the config takes it for.
        """
        scalar = {self._config.pt_key, self._config.eta_key, *self._truth_branches()}
        lists: set[str] = set()
        for group in self._config.groups:
            if group.name == GLOBAL:
                scalar.update(group.branches)
            else:
                lists.update(group.plain)
        for name in sorted(scalar & tree.jagged):
            raise DataError(f"the branch `{name}` of '{tree.path}' is a list per jet, but the config takes one number")
        for name in sorted(lists - tree.jagged):
            raise DataError(f"the branch `{name}` of '{tree.path}' is one number per jet, but the config takes a list")

    def convert(
        self, chunk: Chunk, path: str, process: int, source: int, keys: Keys | None = None
    ) -> tuple[JetBlock, Accounting]:
        """The accepted jets of a chunk and what became of all of them.

        Parameters
        ----------
        path : of the file, for messages.
        process : index of the file's process.
        source : becomes the first number of the jet ids; weights are zero.
        keys : gives the key of each entry; jets come by ascending key, None: by entry.
        """
        total = chunk.stop - chunk.start
        kinematics, truth, state = self._select(chunk)
        jets = np.flatnonzero(state == len(REASONS))
        if keys is not None:
            # Ordered here, where candidates are gathered anyway, a sorted chunk costs no copy of its own.
            jets = jets[np.argsort(keys(chunk.start + jets), kind="stable")]
        features, counts, finite = self._features(chunk, jets, path, truth[jets])
        state[jets[~finite]] = REASONS.index("non_finite")
        lost = state == REASONS.index("non_finite")
        if lost.any():
            self._lose("", truth[lost])
        block = JetBlock(
            features=features,
            counts=counts,
            truth=truth[jets],
            process=np.full(len(jets), process, np.int16),
            weight=np.zeros(len(jets), np.float32),
            jet_id=np.stack([np.full(len(jets), source), chunk.start + jets], axis=1),
            kinematics=kinematics[jets],
        )
        if not finite.all():
            block = block.take(np.flatnonzero(finite))
        rejected = {reason: int(np.count_nonzero(state == i)) for i, reason in enumerate(REASONS)}
        return block, Accounting(total, len(block), rejected)

    def _lose(self, column: str, truth: NDArray[np.bool_]) -> None:
        """Count jets with the labels `truth` [J,K] for a column."""
        self.lost[column] = self.lost.get(column, 0) + np.append(truth.sum(axis=0, dtype=np.int64), len(truth))

    def _truth_branches(self) -> tuple[str, ...]:
        return tuple(branch for truth in self._config.truths for branch in truth.branches)

    def _select(self, chunk: Chunk) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int8]]:
        """(pt, eta) [J,2], truth [J,K], and per jet the index of the reason that rejects it, or their number."""
        config = self._config
        finite = np.ones(chunk.stop - chunk.start, np.bool_)
        inside = finite.copy()
        for name, edges in ((config.pt_key, config.bins_pt), (config.eta_key, config.bins_eta)):
            # float64: neither the edge nor the value is rounded to the other's width.
            values = chunk.scalars[name].astype(np.float64)
            finite &= np.isfinite(values)
            inside &= (edges[0] <= values) & (values < edges[-1])
        for name in self._truth_branches():
            finite &= np.isfinite(chunk.scalars[name])
        truth = np.stack([label.evaluate(chunk.scalars) for label in config.truths], axis=1)
        if not finite.all():
            for name in dict.fromkeys((config.pt_key, config.eta_key, *self._truth_branches())):
                bad = ~np.isfinite(chunk.scalars[name])
                if bad.any():
                    self._lose(name, truth[bad])
        state = np.full(len(finite), len(REASONS), np.int8)
        state[~truth.any(axis=1)] = REASONS.index("no_truth")
        state[~inside] = REASONS.index("outside_bins")
        state[~finite] = REASONS.index("non_finite")
        with np.errstate(over="ignore"):
            kinematics = np.stack([chunk.scalars[config.pt_key], chunk.scalars[config.eta_key]], axis=1)
            return kinematics.astype(np.float32), truth, state

    def _features(
        self, chunk: Chunk, jets: NDArray[np.int64], path: str, truth: NDArray[np.bool_]
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int32]], NDArray[np.bool_]]:
        """Features and counts of the groups for `jets`, and which of these jets are finite, bool [J']."""
        features: dict[str, NDArray[np.float32]] = {}
        counts: dict[str, NDArray[np.int32]] = {}
        finite = np.ones(len(jets), np.bool_)
        for group in self._config.groups:
            if group.name == GLOBAL:
                sources = {name: (chunk.scalars[name], jets) for name in group.branches}
                values, bad = self._matrix(group, sources, len(jets))
                owners = np.arange(len(jets))
            else:
                values, number, bad = self._candidates(group, chunk, jets, path)
                owners = np.repeat(np.arange(len(jets)), number) if bad else np.zeros(0, np.int64)
                values, counts[group.name] = strip(values, number)
            for name, rows in bad.items():
                lost = np.unique(owners[rows])
                finite[lost] = False
                self._lose(name, truth[lost])
            features[group.name] = values
        return features, counts, finite

    def _candidates(
        self, group: Group, chunk: Chunk, jets: NDArray[np.int64], path: str
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], dict[str, NDArray[np.int64]]]:
        """Features [S,F] of the first candidates of `jets`, their numbers [J'], and rows not finite by column.

        Numbers of the jet are repeated for each candidate.
        """
        lists = {name: chunk.jagged[name] for name in group.branches if name in chunk.jagged}
        if not lists:
            raise DataError(
                f"the group {group.name} reads no list of candidates from '{path}', only numbers per jet: move its "
                "columns to the global features"
            )
        offsets = _common_offsets(lists, chunk.start, path)
        rows, counts = first_rows(offsets, jets, group.length)
        sources = {name: (column.values, rows) for name, column in lists.items()}
        if len(lists) < len(group.branches):
            jet = np.repeat(jets, counts)
            sources |= {name: (chunk.scalars[name], jet) for name in group.branches if name not in lists}
        values, bad = self._matrix(group, sources, len(rows))
        return values, counts, bad

    def _matrix(
        self, group: Group, sources: Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]], n_rows: int
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.int64]]]:
        """Plain and custom columns side by side, float32 [n_rows,F], and the rows that are not finite by column.

        Too large for float32 becomes infinite; what `non_finite` replaces, custom features see as replaced.

        sources : of each branch all of its rows, and the positions [n_rows] of those that are wanted.
        """
        # Column by column and turned at the end: writing every F-th number of a large array is slower.
        size = len(group.columns) * n_rows
        if len(self._scratch) < size:
            self._scratch = np.empty(size, np.float32)
        stacked = self._scratch[:size].reshape(len(group.columns), n_rows)
        places = dict(zip(group.columns, stacked, strict=True))
        columns: dict[str, NDArray[Any]] = {}
        replaced = {name: value for name, value in self._config.non_finite.items() if name in places}
        with np.errstate(over="ignore"):
            for name, (values, rows) in sources.items():
                if name in places and values.dtype == np.float32:
                    # `clip` says that nothing is to be checked: the index is our own.
                    columns[name] = np.take(values, rows, out=places[name], mode="clip")
                else:
                    columns[name] = values.take(rows)
                    if name in places:
                        places[name][:] = columns[name]
                if name in replaced:
                    columns[name] = _replaced(places[name], replaced[name])
            for name, expression in self._custom[group.name]:
                columns[name] = np.broadcast_to(expression.evaluate(columns), n_rows)
                places[name][:] = columns[name]
                if name in replaced:
                    columns[name] = _replaced(places[name], replaced[name])
        bad = {}
        for name, stored in places.items():
            fine = np.isfinite(stored)
            if not fine.all():
                bad[name] = np.flatnonzero(~fine)
        return np.array(stacked.T, order="C"), bad


def _common_offsets(lists: Mapping[str, Jagged], start: int, path: str) -> NDArray[np.int64]:
    """Where the candidates begin; DataError when two branches of a group disagree."""
    (first, column), *others = lists.items()
    for name, other in others:
        if column.offsets is not other.offsets and not np.array_equal(column.offsets, other.offsets):
            jet = int(np.flatnonzero(np.diff(column.offsets) != np.diff(other.offsets))[0])
            raise DataError(
                f"the branches `{first}` and `{name}` are in one group, but entry {start + jet} of '{path}' has "
                f"{np.diff(column.offsets)[jet]} and {np.diff(other.offsets)[jet]} candidates: correct the config"
            )
    return column.offsets


def _replaced(column: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    """The column, changed in place where it is not finite."""
    column[~np.isfinite(column)] = value
    return column
