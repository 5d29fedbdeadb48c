"""Jagged candidates and padded ones. A candidate whose features are all zero at the end of a jet is padding.

J: jets; S: candidates of one group, summed over the jets; N: candidates kept per jet; F: columns.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Kind = TypeVar("Kind", bound=np.generic)


def first_rows(offsets: NDArray[np.int64], jets: NDArray[np.int64], length: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows of the first `length` candidates of some jets.

    Parameters
    ----------
    offsets : [J+1], where each jet's candidates begin in a flat array.
    jets : [J'], the jets wanted.

    Returns
    -------
    rows : int64 [S']
    counts : int32 [J']
    """
    starts = offsets[jets]
    counts = np.minimum(offsets[jets + 1] - starts, length)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total), counts.astype(np.int32)


def strip(values: NDArray[Kind], counts: NDArray[np.int32]) -> tuple[NDArray[Kind], NDArray[np.int32]]:
    """Features [S,F] and counts [J] without the all-zero candidates at the end of each jet."""
    ends = np.cumsum(counts, dtype=np.int64)
    if (values[ends[counts > 0] - 1] != 0).any(axis=1).all():
        return values, counts
    filled = (values != 0).any(axis=1)
    within = np.arange(len(values)) - np.repeat(ends - counts, counts) + 1
    kept = np.zeros_like(counts)
    some = counts > 0
    kept[some] = np.maximum.reduceat(np.where(filled, within, 0), (ends - counts)[some])
    keep = within <= np.repeat(kept, counts)
    return values[keep], kept


def pad(values: NDArray[Kind], counts: NDArray[np.int32], length: int) -> NDArray[Kind]:
    """Candidates [S,F] as [J,N,F], zero where a jet has fewer than N."""
    padded = np.zeros((len(counts), length, values.shape[1]), values.dtype)
    padded[np.arange(length) < counts[:, None]] = values
    return padded


def unpad(padded: NDArray[Kind]) -> tuple[NDArray[Kind], NDArray[np.int32]]:
    """Candidates [S,F] and counts [J] of a padded array [J,N,F]."""
    length = padded.shape[1]
    filled = (padded != 0).any(axis=2)
    counts = np.where(filled.any(axis=1), length - np.argmax(filled[:, ::-1], axis=1), 0).astype(np.int32)
    return padded[np.arange(length) < counts[:, None]], counts
