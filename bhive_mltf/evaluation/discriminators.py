"""Discriminators between jet classes, found by the names of the classes (never by their positions).

A discriminator is S / (S + B): S the summed probability of its signal classes, B that of its background classes.
Jets of all other classes are vetoed. N: jets; C: classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.errors import ModelError

FLAVOUR, VS_REST, VS_REFERENCE = "flavour", "vs_rest", "vs_reference"

# Lower-case class names that mean a flavour; `l` is every light jet, quark or gluon.
_MEANINGS: Mapping[str, frozenset[str]] = {
    "b": frozenset({"b", "bb", "gbb", "leptonicb", "leptonicb_c"}),
    "c": frozenset({"c", "cc", "gcc"}),
    "uds": frozenset({"uds", "ud", "u", "d", "s"}),
    "g": frozenset({"g"}),
    "l": frozenset({"uds", "ud", "u", "d", "s", "g", "l", "light", "udsg"}),
    "tau": frozenset({"tau", "taup", "taum", "tau_p", "tau_m"}),
}
_HLT_TAUS = frozenset({"taup", "taum"})
_NAMES = {"b": "b", "c": "c", "l": "light", "uds": "uds", "g": "gluon", "tau": r"$\tau$"}

# label, signal, background; a discriminator exists when each flavour that it names has a class
_TABLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("bvsl", "b", ("l",)),
    ("bvsc", "b", ("c",)),
    ("cvsb", "c", ("b",)),
    ("cvsl", "c", ("l",)),
    ("bvsall", "b", ("l", "c")),
    ("uds_vs_g", "uds", ("g",)),
    ("tauvsl", "tau", ("l",)),
)


@dataclass(frozen=True)
class Discriminator:
    """S / (S + B) for named classes.

    label : upstream's name, safe in a file name.
    signal, background : indices of classes; jets of the others are vetoed.
    signal_name, background_name : for axes and legends.
    family : discriminators of one family share an overview figure.
    """

    label: str
    signal: tuple[int, ...]
    background: tuple[int, ...]
    signal_name: str
    background_name: str
    family: str = FLAVOUR

    @property
    def title(self) -> str:
        """What it separates, for legends."""
        return f"{self.signal_name} vs {self.background_name}"

    def value(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """S / (S + B) float64 [N] of `probabilities` [N,C]; -1 where S + B is zero, as upstream."""
        signal = probabilities[:, list(self.signal)].sum(axis=1)
        total = signal + probabilities[:, list(self.background)].sum(axis=1)
        value = np.full(len(total), -1.0)
        np.divide(signal, total, out=value, where=total != 0)
        return value

    def split(
        self, probabilities: NDArray[np.float64], truth: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values of the signal jets and of the background jets; all others are vetoed."""
        is_signal, is_background = np.isin(truth, self.signal), np.isin(truth, self.background)
        return self.value(probabilities[is_signal]), self.value(probabilities[is_background])


def probabilities(outputs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Class probabilities float64 [N,C]: softmax, unless `outputs` are probabilities already."""
    return np.asarray(outputs, dtype=np.float64) if are_probabilities(outputs) else softmax(outputs)


def are_probabilities(outputs: NDArray[np.floating]) -> bool:
    """Whether rows [N,C] sum to one: the mean deviation is at most 1e-3, as upstream. Rows with NaN do not count."""
    with np.errstate(invalid="ignore"):
        sums = outputs.sum(axis=1, dtype=np.float64)
    sums = sums[np.isfinite(sums)]
    return bool(len(sums) and np.abs(sums - 1.0).mean() <= 1e-3)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Softmax of rows [N,C] in float64; rows with infinite or NaN outputs may become NaN."""
    values = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        exponentials = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float64)


def safe_name(text: str) -> str:
    """`text` with everything that could surprise in a file name replaced by an underscore."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", text).lstrip(".") or "_"


def discriminators(classes: Iterable[str]) -> tuple[Discriminator, ...]:
    """All discriminators of a model with these classes, in the order of its outputs.

    Flavour taggers get upstream's list. Other class sets get each class against the rest and, with a reference
    (the classes whose names contain QCD), each other class against it; two classes give one discriminator.

    Raises
    ------
    ModelError
        Fewer than two classes.
    """
    names = tuple(classes)
    if len(names) < 2:
        raise ModelError(f"Discriminators need at least two classes, the model has {list(names)}")
    return _flavour_discriminators(names) or _generic_discriminators(names)


def _flavour_discriminators(names: Sequence[str]) -> tuple[Discriminator, ...]:
    lower = [name.lower() for name in names]
    found = {
        flavour: tuple(i for i, name in enumerate(lower) if name in meaning) for flavour, meaning in _MEANINGS.items()
    }
    made = []
    for label, signal, backgrounds in _TABLE:
        if not all(found[flavour] for flavour in (signal, *backgrounds)):
            continue
        background = tuple(i for flavour in backgrounds for i in found[flavour])
        if label == "bvsall":
            # upstream's HLT taggers count taus as background here, its offline tau taggers veto them
            background += tuple(i for i in found["tau"] if lower[i] in _HLT_TAUS)
        other = "all" if label == "bvsall" else _NAMES[backgrounds[0]]
        made.append(Discriminator(label, found[signal], tuple(sorted(background)), _NAMES[signal], other))
    return tuple(made)


def _generic_discriminators(names: Sequence[str]) -> tuple[Discriminator, ...]:
    everything = tuple(range(len(names)))
    reference = tuple(i for i in everything if "QCD" in names[i])
    others = tuple(i for i in everything if i not in reference)
    versus = tuple(_versus(names[i], i, reference, "QCD") for i in others if reference)
    if len(names) == 2:
        return versus or (_versus(names[0], 0, (1,), _short(names[1])),)
    return versus + tuple(_versus_rest(name, i, len(names)) for i, name in enumerate(names))


def _versus(name: str, index: int, reference: tuple[int, ...], other: str) -> Discriminator:
    label = safe_name(f"{_short(name)}vs{other}")
    return Discriminator(label, (index,), reference, _text(_short(name)), _text(other), VS_REFERENCE)


def _versus_rest(name: str, index: int, n_classes: int) -> Discriminator:
    rest = tuple(other for other in range(n_classes) if other != index)
    return Discriminator(safe_name(f"{_short(name)}_vs_rest"), (index,), rest, _text(_short(name)), "rest", VS_REST)


def _short(name: str) -> str:
    return name.removeprefix("label_")


def _text(name: str) -> str:
    """A class name as plain text in a figure: `$` would start mathematics."""
    return name.replace("$", r"\$")
