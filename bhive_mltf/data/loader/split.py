"""Which jets train and which validate."""

from __future__ import annotations

import logging
import math

from bhive_mltf.data.protocols import JetSource
from bhive_mltf.errors import DataError, ParameterError

logger = logging.getLogger(__name__)


def training_range(dataset: JetSource, n_train_files: int = -1) -> range:
    """All stored positions, or those of the first `n_train_files` shards: for a training with a validation set.

    Raises
    ------
    ParameterError : a number of files that is neither -1 nor positive.
    DataError : a training set without jets.
    """
    _check(dataset, n_train_files)
    edges = dataset.shard_edges
    return range(len(dataset) if n_train_files == -1 else int(edges[min(n_train_files, len(edges) - 1)]))


def _check(dataset: JetSource, n_train_files: int) -> None:
    if n_train_files != -1 and n_train_files < 1:
        raise ParameterError(f"--n-train-files is {n_train_files}; give -1 for all files, or 1 and more.")
    if len(dataset) == 0:
        raise DataError("The training set has no jets; look at the rejected jets in its manifest.json.")


def split_ranges(dataset: JetSource, train_val_split: float, n_train_files: int = -1) -> tuple[range, range]:
    """The stored positions that train and those that validate.

    The first `floor(N * train_val_split)` jets of the global permutation train, at least one, the rest
    validate. Foreign sets are not permuted globally: there whole files train, as upstream, unless there
    is only one. `n_train_files` cuts the training part after that many shards, -1 keeps it whole.
    When no jet is left to validate, all jets do, with a warning, as upstream.

    Raises
    ------
    ParameterError : a split outside (0, 1], or a number of files that is neither -1 nor positive.
    DataError : a training set without jets.
    """
    if not 0 < train_val_split <= 1:
        raise ParameterError(f"--train-val-split is {train_val_split}; give a fraction above 0 and at most 1.")
    _check(dataset, n_train_files)
    n_jets = len(dataset)
    edges = [int(edge) for edge in dataset.shard_edges]
    n_shards = len(edges) - 1
    if dataset.manifest.derived and n_shards > 1:
        n_train = edges[max(1, math.floor(n_shards * train_val_split))]
    else:
        n_train = max(1, math.floor(n_jets * train_val_split))
    validation = range(n_train, n_jets)
    if not validation:
        logger.warning(
            "No jet is left to validate at --train-val-split %s: all %d jets validate, those that train too.",
            train_val_split,
            n_jets,
        )
        validation = range(n_jets)
    if n_train_files != -1:
        n_train = min(n_train, edges[min(n_train_files, n_shards)])
    return range(n_train), validation
