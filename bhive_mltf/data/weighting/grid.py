"""Weights that give every flavour the pt-eta shape of a reference flavour: B-Hive's algorithm.

Source: B-Hive's `DatasetConstructorTask`. K: truth labels; P, E: bins in pt and eta; J: jets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.errors import DataError


@dataclass(frozen=True)
class Grid:
    """Bins in pt (GeV) and pseudorapidity."""

    pt: tuple[float, ...]
    eta: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(P, E)."""
        return len(self.pt) - 1, len(self.eta) - 1

    def bins(self, kinematics: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bins of (pt, eta) [J,2]; what rounding has moved over an outer edge stays in the outer bin."""
        pt, eta = (
            np.clip(np.searchsorted(edges, kinematics[:, i].astype(np.float64), side="right") - 1, 0, len(edges) - 2)
            for i, edges in enumerate((self.pt, self.eta))
        )
        return pt, eta

    def histogram(self, kinematics: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Jets per label and bin, int64 [K,P,E]; a jet counts for each of its labels."""
        pt, eta = self.bins(kinematics)
        flat = pt * self.shape[1] + eta
        size = self.shape[0] * self.shape[1]
        counts = [np.bincount(flat[truth[:, k]], minlength=size) for k in range(truth.shape[1])]
        return np.stack(counts).reshape(-1, *self.shape).astype(np.int64)

    def look_up(
        self, weights: NDArray[np.float64], kinematics: NDArray[np.float32], truth: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Of weights [K,P,E], those of jets with (pt, eta) [J,2] and labels [J,K]; the first true label decides."""
        pt, eta = self.bins(kinematics)
        found: NDArray[np.float32] = weights[np.argmax(truth, axis=1), pt, eta].astype(np.float32)
        return found


def reference_shape(histogram: NDArray[np.int64], reference: int) -> NDArray[np.float64]:
    """Weights that turn the shape of each label into that of the reference.

    With R the reference's counts, H those of a label: w = (R / max R) / (H / max H), divided by its largest value over
    the bins with H > 0; 1 where H = 0. A label without jets, or without a bin in common with the reference, keeps
    weights of 1 and 0.

    Parameters
    ----------
    histogram : int64 [K,P,E], jets per label and bin.
    reference : the label whose shape is wanted; it must have jets.

    Returns
    -------
    float64 [K,P,E], in [0, 1]
    """
    counts = histogram.astype(np.float64)
    target = counts[reference] / counts[reference].max()
    largest = np.maximum(counts.max(axis=(1, 2), keepdims=True), 1.0)
    filled = counts > 0
    ratio = np.where(filled, target / np.where(filled, counts / largest, 1.0), 0.0)
    top = ratio.max(axis=(1, 2), keepdims=True)
    return np.where(filled, ratio / np.where(top > 0, top, 1.0), 1.0)


def check_labels(histogram: NDArray[np.int64], labels: Sequence[str], reference: str, config: str) -> list[str]:
    """Refuse jets from which nothing can be learned; return one sentence per lesser oddity.

    Parameters
    ----------
    histogram : int64 [K,P,E]
    labels : the K truth labels.
    reference : the label whose shape the weights take.
    config : name of the config, for messages.

    Raises
    ------
    DataError
        Fewer than two labels have jets, or the reference has none.
    """
    totals = histogram.sum(axis=(1, 2))
    filled = [label for label, total in zip(labels, totals, strict=True) if total]
    empty = [label for label, total in zip(labels, totals, strict=True) if not total]
    names = ", ".join(filled) or "none"
    if reference not in filled:
        wanted = f"the reference flavour {reference}" if reference else f"an empty reference flavour (config {config})"
        raise DataError(f"{wanted} has no jets; labels with jets: {names}: name one of these in --reference-flavour")
    if len(filled) < 2:
        raise DataError(
            f"only one truth label of config {config} has jets ({names}): a tagger needs two or more; add files of "
            f"another label ({', '.join(empty) or 'the config names no other'})"
        )
    warnings = [f"no jets of the truth labels {', '.join(empty)} of config {config}"] if empty else []
    shared = ((histogram > 0) & (histogram[list(labels).index(reference)] > 0)).any(axis=(1, 2))
    for label, total, has_shared in zip(labels, totals, shared, strict=True):
        if total and not has_shared:
            warnings.append(
                f"the label {label} shares no pt-eta bin with the reference flavour {reference}: its {total} jets have "
                "weight 0 and are never drawn by weighted sampling"
            )
    return warnings
