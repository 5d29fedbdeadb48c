"""From truth labels to the classes of a model.

J: jets; C: classes of the model; K: truth labels of the config.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.errors import DataError, ModelError, ParameterError, nearest

logger = logging.getLogger(__name__)

Classes = Sequence[tuple[str, Sequence[str]]]
Unmatched = Literal["error", "drop", "first"]

_CHUNK = 1 << 16


def class_targets(truth_bits: NDArray[np.uint64], truths: Sequence[str], classes: Classes) -> NDArray[np.int64]:
    """Index of the class per jet [J], -1 for a jet in no class.

    A jet belongs to the last class that has one of its labels, as upstream.

    Parameters
    ----------
    truth_bits : uint64 [J]; bit k is set when the jet has the label `truths[k]`.
    truths : labels of the config.
    classes : (class, labels) in the order of the model's outputs.

    Raises
    ------
    ModelError
        A class names a label that the config does not have.
    """
    targets = np.full(len(truth_bits), -1, np.int64)
    for position, mask in enumerate(_class_masks(truths, classes)):
        np.putmask(targets, (truth_bits & mask) != 0, position)
    return targets


def _class_masks(truths: Sequence[str], classes: Classes) -> list[np.uint64]:
    bit_of = {label: 1 << k for k, label in enumerate(truths)}
    masks = []
    for name, labels in classes:
        unknown = [label for label in labels if label not in bit_of]
        if unknown:
            raise ModelError(
                f"class '{name}' of the model needs the truth labels {_quoted(unknown)}, which the config does not "
                f"have; nearest: {_quoted(nearest(unknown[0], truths))}: choose a config or a model whose labels agree"
            )
        masks.append(np.uint64(sum({bit_of[label] for label in labels})))
    return masks


@dataclass(frozen=True)
class ClassCounts:
    """Jets per class, and what the jets without a class carry.

    per_class : jets by class.
    unmatched : jets in no class.
    unmatched_labels : by truth label, the jets in no class that carry it; `(no label)` for those without any.
    """

    per_class: Mapping[str, int]
    unmatched: int
    unmatched_labels: Mapping[str, int]

    @property
    def total(self) -> int:
        """All jets."""
        return sum(self.per_class.values()) + self.unmatched


def count_classes(truth_bits: NDArray[np.uint64], jets: range, truths: Sequence[str], classes: Classes) -> ClassCounts:
    """Count the classes of the stored jets `jets`, piece by piece."""
    per_class = np.zeros(len(classes), np.int64)
    per_label = np.zeros(len(truths) + 1, np.int64)
    unmatched = 0
    for start in range(jets.start, jets.stop, _CHUNK):
        bits = np.asarray(truth_bits[start : min(start + _CHUNK, jets.stop)])
        targets = class_targets(bits, truths, classes)
        per_class += np.bincount(targets[targets >= 0], minlength=len(classes))
        rest = bits[targets < 0]
        if len(rest):
            unmatched += len(rest)
            per_label[:-1] += [int(((rest >> np.uint64(k)) & np.uint64(1)).sum()) for k in range(len(truths))]
            per_label[-1] += int((rest == 0).sum())
    names = [name for name, _ in classes]
    return ClassCounts(
        per_class=dict(zip(names, per_class.tolist(), strict=True)),
        unmatched=unmatched,
        unmatched_labels={label: n for label, n in zip([*truths, "(no label)"], per_label.tolist(), strict=True) if n},
    )


def check_mode(unmatched: str) -> Unmatched:
    """`unmatched` itself; ParameterError if it is none of the possible values."""
    if unmatched not in get_args(Unmatched):
        raise ParameterError(f"--unmatched is '{unmatched}': give one of {_quoted(get_args(Unmatched))}")
    return cast("Unmatched", unmatched)


def check_unmatched(counts: ClassCounts, unmatched: Unmatched, classes: Classes) -> None:
    """Raise DataError when there are jets in no class and `unmatched` does not say what to do with them."""
    if unmatched != "error" or not counts.unmatched:
        return
    labels = ", ".join(f"{label}: {n}" for label, n in counts.unmatched_labels.items())
    raise DataError(
        f"{counts.unmatched} of {counts.total} jets are in none of the model's classes "
        f"{_quoted([name for name, _ in classes])} (by truth label: {labels}): say what becomes of them with "
        f"--unmatched drop (left out) or --unmatched first (they count as '{classes[0][0]}', as upstream); "
        "the default is --unmatched error"
    )


def check_filled(counts: ClassCounts, unmatched: Unmatched) -> None:
    """Raise DataError when fewer than two classes have jets; other empty classes are a warning."""
    per_class = dict(counts.per_class)
    if unmatched == "first" and per_class:
        per_class[next(iter(per_class))] += counts.unmatched
    filled = [name for name, n in per_class.items() if n]
    empty = [name for name, n in per_class.items() if not n]
    if len(filled) < 2:
        raise DataError(
            f"a training needs jets of at least two classes, but only {_quoted(filled) or 'none'} of the model's "
            f"classes {_quoted(per_class)} has any: add files of other processes to --filelist"
        )
    if empty:
        logger.warning("no jets of the classes %s in the training part", _quoted(empty))


def resolve_unmatched(targets: NDArray[np.int64], unmatched: Unmatched) -> NDArray[np.int64]:
    """`targets` [J], with jets in no class in class 0 when `unmatched` is `first` (upstream, W15), else -1."""
    return np.maximum(targets, 0) if unmatched == "first" else targets


def _quoted(names: Sequence[str] | Mapping[str, int]) -> str:
    return ", ".join(f"'{name}'" for name in names)
