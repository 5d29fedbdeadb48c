"""ROC curves, areas and working points from the values of signal and background jets, with their uncertainties.

All intervals are one standard deviation (68.27 %).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bhive_mltf.errors import DataError

ONE_SIGMA = 0.6826894921370859
MAX_POINTS = 2000

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A ROC curve; a jet passes when its value is at least the threshold (sklearn's convention).

    mistag, efficiency, threshold : float64 [P], mistag and efficiency never fall; the first threshold is infinite.
    n_signal, n_background : jets behind it.
    """

    mistag: Values
    efficiency: Values
    threshold: Values
    n_signal: int
    n_background: int

    def array(self) -> Values:
        """Upstream's array [3,P]: mistag, efficiency, threshold."""
        return np.stack([self.mistag, self.efficiency, self.threshold])


@dataclass(frozen=True)
class Area:
    """Area under a ROC curve and its standard error (NaN with fewer than two jets of a kind)."""

    auc: float
    error: float


@dataclass(frozen=True)
class WorkingPoint:
    """The loosest cut `value > threshold` whose mistag rate is at most `wp`, from all jets.

    mistag, efficiency : what the cut achieves; the intervals are Clopper-Pearson.
    reason : why there is no such cut; empty when there is one. Without one all figures are NaN.
    """

    wp: float
    n_signal: int
    n_background: int
    threshold: float = float("nan")
    mistag: float = float("nan")
    mistag_low: float = float("nan")
    mistag_up: float = float("nan")
    efficiency: float = float("nan")
    efficiency_low: float = float("nan")
    efficiency_up: float = float("nan")
    reason: str = ""

    def row(self) -> dict[str, float | int | str | None]:
        """As a row for CSV or JSON: None for what does not exist."""
        return {name: None if value != value else value for name, value in vars(self).items()}  # noqa: PLR0124


def roc_curve(signal: Values, background: Values, max_points: int = MAX_POINTS) -> Curve:
    """ROC curve of signal against background values, at most `max_points` points (see `thin`).

    Raises
    ------
    DataError
        No signal or no background jets.
    """
    from sklearn import metrics

    _require(signal, background)
    is_signal = np.concatenate([np.ones(len(signal), dtype=np.int8), np.zeros(len(background), dtype=np.int8)])
    mistag, efficiency, threshold = metrics.roc_curve(
        is_signal, np.concatenate([signal, background]), drop_intermediate=True
    )
    kept = thin(mistag, efficiency, max_points)
    return Curve(mistag[kept], efficiency[kept], threshold[kept], len(signal), len(background))


def thin(mistag: Values, efficiency: Values, max_points: int) -> NDArray[np.int64]:
    """Indices of at most `max_points` points of a rising curve, ends included.

    Half of them lie equally spaced in efficiency, half in the logarithm of the mistag rate: on the axes of the
    figures no gap between neighbours grows beyond a step of these grids unless the curve itself jumps.
    """
    n = len(mistag)
    if n <= max_points:
        return np.arange(n, dtype=np.int64)
    half = (max_points - 2) // 2
    lowest = mistag[mistag > 0].min(initial=1.0)
    in_efficiency = np.searchsorted(efficiency, np.linspace(0.0, 1.0, half))
    in_mistag = np.searchsorted(mistag, np.geomspace(lowest, 1.0, half))
    kept = np.concatenate([[0, n - 1], in_efficiency, in_mistag])
    return np.unique(kept.clip(0, n - 1)).astype(np.int64)


def area(signal: Values, background: Values) -> Area:
    """Exact area under the ROC curve of all jets (ties count half), with DeLong's standard error.

    DeLong, DeLong, Clarke-Pearson, Biometrics 44 (1988) 837; placements by sorting as in Sun, Xu, IEEE Signal
    Processing Letters 21 (2014) 1389. The error is zero when the two samples do not overlap.

    Raises
    ------
    DataError
        No signal or no background jets.
    """
    _require(signal, background)
    of_signal = _placements(signal, background)
    of_background = _placements(background, signal)
    if min(len(signal), len(background)) < 2:
        return Area(float(of_signal.mean()), float("nan"))
    variance = of_signal.var(ddof=1) / len(signal) + of_background.var(ddof=1) / len(background)
    return Area(float(of_signal.mean()), float(np.sqrt(variance)))


def _placements(values: Values, others: Values) -> Values:
    """For each value the fraction of `others` below it, ties as a half."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, values, side="left") + np.searchsorted(ranked, values, side="right")
    return below / (2.0 * len(others))


def binomial_interval(passed: ArrayLike, total: ArrayLike) -> tuple[Values, Values]:
    """Clopper-Pearson interval (low, up) of passed / total; Biometrika 26 (1934) 404.

    Covers at least 68.27 % whatever the true rate, also where `passed` is zero or `total`.
    """
    from scipy import special

    k, n = np.asarray(passed, dtype=np.float64), np.asarray(total, dtype=np.float64)
    tail = (1.0 - ONE_SIGMA) / 2.0
    low = np.where(k > 0, special.betaincinv(np.maximum(k, 1.0), n - k + 1.0, tail), 0.0)
    up = np.where(k < n, special.betaincinv(k + 1.0, np.maximum(n - k, 1.0), 1.0 - tail), 1.0)
    return low, up


def working_point(signal: Values, background: Values, wp: float) -> WorkingPoint:
    """The working point at mistag rate `wp`; one with a `reason` where the jets do not allow it.

    The threshold lies half-way between the neighbouring values of jets, so that rounding does not move jets across.

    Raises
    ------
    DataError
        No signal or no background jets.
    """
    _require(signal, background)
    n_signal, n_background = len(signal), len(background)
    allowed = int(np.floor(wp * n_background * (1 + 1e-12)))  # 0.001 * 1000 is meant to be 1
    if allowed < 1:
        reason = f"{n_background} background jets; a mistag rate of {wp:g} needs at least {int(np.ceil(1 / wp))}"
        return WorkingPoint(wp, n_signal, n_background, reason=reason)
    if allowed >= n_background:
        edge = -np.inf
    else:
        edge = np.partition(background, n_background - allowed - 1)[n_background - allowed - 1]
    passing = int((background > edge).sum())
    selected = int((signal > edge).sum())
    if passing + selected == 0:
        reason = f"more than {allowed} background jets share the highest value {edge:.6g}"
        return WorkingPoint(wp, n_signal, n_background, reason=reason)
    (mistag_low, efficiency_low), (mistag_up, efficiency_up) = binomial_interval(
        [passing, selected], [n_background, n_signal]
    )
    return WorkingPoint(
        wp=wp,
        n_signal=n_signal,
        n_background=n_background,
        threshold=_between(float(edge), signal, background),
        mistag=passing / n_background,
        mistag_low=float(mistag_low),
        mistag_up=float(mistag_up),
        efficiency=selected / n_signal,
        efficiency_low=float(efficiency_low),
        efficiency_up=float(efficiency_up),
    )


def _between(edge: float, signal: Values, background: Values) -> float:
    """A threshold t, edge <= t, with the same jets above it as above `edge`, away from their values."""
    above = min(values[values > edge].min(initial=np.inf) for values in (signal, background))
    if np.isinf(edge):
        return float(np.nextafter(above, -np.inf))
    middle = edge + (float(above) - edge) / 2.0
    return middle if edge <= middle < above else edge


def passing_fraction(values: Values, thresholds: Values) -> Values:
    """Fraction [T] of `values` [J] that are greater than each threshold [T]."""
    ranked = np.sort(values)
    return 1.0 - np.searchsorted(ranked, thresholds, side="right") / len(ranked)


def _require(signal: Values, background: Values) -> None:
    missing = [name for name, values in (("signal", signal), ("background", background)) if len(values) == 0]
    if missing:
        raise DataError(
            f"A ROC curve needs jets of both kinds, there are {len(signal)} signal and {len(background)} background "
            "jets: evaluate on files that hold both"
        )
