"""Histograms of all input features of a training set, per truth label, with one binning for all files.

Two passes over the set: the first finds each feature's range (`input_binning`), the second counts.
K: truth labels; F: columns of a group; J: jets; S: candidates of a group; N: bins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.dataset import Dataset
from bhive_mltf.data.index import truth_bits
from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.evaluation.inputs.binning import N_BUCKETS, Binning, Values, buckets, choose_binning
from bhive_mltf.evaluation.inputs.features import check_parameters, count_workers, features
from bhive_mltf.evaluation.inputs.processes import in_processes
from bhive_mltf.files import atomic

BLOCK_JETS = 4_096
"""Jets in memory at a time."""
_MIN_PIECE, _MAX_PIECES = 1 << 16, 256
_T = TypeVar("_T")


@dataclass(frozen=True)
class Scan:
    """Values of some jets, counted; per group.

    counts : those that are not 0, by their positions in an array [F, buckets].
    extremes : float32 [F,2], smallest and largest value.
    integral : bool [F], no value has a fraction.
    """

    counts: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    extremes: dict[str, NDArray[np.float32]]
    integral: dict[str, NDArray[np.bool_]]


def input_histograms(
    dataset: Dataset, *, n_bins: int = 50, n_workers: int = 1, weighted: bool = False
) -> dict[str, NDArray[np.float32]]:
    """Histograms `<truth>/<feature>`, float32 [2, N+2]: counts with underflow and overflow, centres of the bins.

    The bins of a feature are the same for all labels and files. Candidates that a jet does not have are not counted;
    a zero of one that it has is a value like any other. A jet counts for each of its labels. The result does not
    depend on `n_workers`.

    Parameters
    ----------
    n_workers : processes; -1: one per core but one.
    weighted : each jet counts with its weight: the expectation of what weighted sampling draws.

    Raises
    ------
    ParameterError
        `n_bins` or `n_workers` out of range.
    DataError
        A shard cannot be read; a process was killed.
    """
    check_parameters(n_bins, n_workers)
    workers = count_workers(n_workers)
    binnings = find_binnings(dataset, n_bins, workers)
    sums: dict[str, NDArray[np.float64]] = {}
    # Pieces are added in their own order: sums of weights then have the same last digit for any number of processes.
    for part in _each_piece(functools.partial(fill, dataset, binnings=binnings, weighted=weighted), dataset, workers):
        for group, counts in part.items():
            sums[group] = sums[group] + counts if group in sums else counts
    result = {}
    for feature in features(dataset.schema.groups):
        centres = binnings[feature.group][feature.position].centres
        for k, label in enumerate(dataset.schema.truths):
            counts = sums[feature.group][feature.position, k]
            result[f"{label}/{feature.name}"] = np.stack([counts, centres]).astype(np.float32)
    return result


def write_histograms(histograms: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """Write histograms as npz, whole or not at all."""
    arrays: dict[str, Any] = dict(histograms)
    with atomic.replace_file(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)


def find_binnings(dataset: Dataset, n_bins: int, workers: int = 1) -> dict[str, list[Binning]]:
    """Per group the binning of each column."""
    groups = dataset.schema.groups
    counts = {group.name: np.zeros(len(group.columns) * N_BUCKETS, np.int64) for group in groups}
    extremes, integral = _nothing_seen(dataset)
    for part in _each_piece(functools.partial(scan, dataset), dataset, workers):
        for name, (at, found) in part.counts.items():
            counts[name][at] += found
            extremes[name] = _wider(extremes[name], part.extremes[name])
            integral[name] &= part.integral[name]
    return {
        group.name: [
            choose_binning(Values(each, float(low), float(high), bool(whole)), n_bins)
            for each, (low, high), whole in zip(
                counts[group.name].reshape(-1, N_BUCKETS), extremes[group.name], integral[group.name], strict=True
            )
        ]
        for group in groups
    }


def scan(dataset: Dataset, jets: range) -> Scan:
    """Count the finite values of some jets by bucket."""
    counts = {group.name: np.zeros((len(group.columns), N_BUCKETS), np.int64) for group in dataset.schema.groups}
    extremes, integral = _nothing_seen(dataset)
    for block in _blocks(dataset, jets):
        for name, values in block.features.items():
            for position in range(values.shape[1]):
                column = np.ascontiguousarray(values[:, position])
                column = column[np.isfinite(column)]
                if not len(column):
                    continue
                counts[name][position] += np.bincount(buckets(column), minlength=N_BUCKETS)
                here = np.array([column.min(), column.max()], np.float32)
                extremes[name][position] = _wider(extremes[name][position], here)
                if integral[name][position]:
                    integral[name][position] = bool((column == np.rint(column)).all())
    return Scan({name: (np.flatnonzero(each), each[each > 0]) for name, each in counts.items()}, extremes, integral)


def _nothing_seen(dataset: Dataset) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.bool_]]]:
    groups = dataset.schema.groups
    extremes = {
        group.name: np.tile(np.array([np.inf, -np.inf], np.float32), (len(group.columns), 1)) for group in groups
    }
    return extremes, {group.name: np.ones(len(group.columns), np.bool_) for group in groups}


def _wider(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Extremes [..., 2] of two sets of values together."""
    return np.stack([np.minimum(one[..., 0], other[..., 0]), np.maximum(one[..., 1], other[..., 1])], axis=-1)


def fill(
    dataset: Dataset, jets: range, *, binnings: Mapping[str, Sequence[Binning]], weighted: bool
) -> dict[str, NDArray[np.float64]]:
    """Histograms of some jets: per group float64 [F, K, N+2]."""
    n_truths = len(dataset.schema.truths)
    sums = {name: np.zeros((len(each), n_truths, each[0].n_bins + 2)) for name, each in binnings.items()}
    for block in _blocks(dataset, jets):
        _add(block, binnings, sums, weighted)
    return sums


def _add(
    block: JetBlock, binnings: Mapping[str, Sequence[Binning]], sums: Mapping[str, NDArray[np.float64]], weighted: bool
) -> None:
    # Jets are counted once per combination of labels, and the combinations added to their labels.
    _, first, kind = np.unique(truth_bits(block.truth), return_index=True, return_inverse=True)
    labels_of = block.truth[first].T.astype(np.float64)
    for group, values in block.features.items():
        kinds, weights = kind, block.weight if weighted else None
        if group != GLOBAL:
            kinds = np.repeat(kinds, block.counts[group])
            weights = None if weights is None else np.repeat(weights, block.counts[group])
        for position, binning in enumerate(binnings[group]):
            sums[group][position] += labels_of @ _count(values[:, position], kinds, weights, binning, len(first))


def _count(
    values: NDArray[np.float32],
    kinds: NDArray[np.int64],
    weights: NDArray[np.float32] | None,
    binning: Binning,
    n_kinds: int,
) -> NDArray[np.float64]:
    """Sums [n_kinds, N+2]; values that are not numbers count nowhere."""
    known = ~np.isnan(values)
    if not known.all():
        values, kinds, weights = values[known], kinds[known], None if weights is None else weights[known]
    width = binning.n_bins + 2
    sums = np.bincount(kinds * width + binning.bins(values), weights=weights, minlength=n_kinds * width)
    return sums.reshape(n_kinds, width).astype(np.float64)


def _blocks(dataset: Dataset, jets: range) -> Iterator[JetBlock]:
    for start in range(jets.start, jets.stop, BLOCK_JETS):
        yield dataset.read(start, min(start + BLOCK_JETS, jets.stop))


def pieces(n_jets: int) -> list[range]:
    """What one call handles; a matter of the set, not of the number of processes."""
    size = max(_MIN_PIECE, -(-n_jets // _MAX_PIECES))
    return [range(start, min(start + size, n_jets)) for start in range(0, n_jets, size)]


def _each_piece(function: Callable[[range], _T], dataset: Dataset, workers: int) -> Iterator[_T]:
    """Results for all pieces, in their order."""
    killed = "a process that fills histograms was killed, most likely for want of memory: use fewer --n-workers"
    return in_processes(function, pieces(len(dataset)), workers, killed)
