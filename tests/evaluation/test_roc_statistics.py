import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from bhive_mltf.errors import DataError
from bhive_mltf.evaluation.statistics import (
    ONE_SIGMA,
    area,
    binomial_interval,
    passing_fraction,
    roc_curve,
    thin,
    working_point,
)

values = st.lists(st.integers(0, 12).map(lambda k: k / 12), min_size=1, max_size=40).map(np.array)


def samples(n_signal, n_background, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(1.5, 1, n_signal), rng.normal(0, 1, n_background)


@settings(max_examples=50)
@given(values, values)
def test_area_equals_sklearn_with_ties(signal, background):
    truth = np.concatenate([np.ones(len(signal)), np.zeros(len(background))])
    expected = metrics.roc_auc_score(truth, np.concatenate([signal, background]))
    assert area(signal, background).auc == pytest.approx(expected, abs=1e-12)


def test_delong_error_equals_the_spread_of_repeated_samples():
    areas = [area(*samples(120, 200, seed)) for seed in range(400)]
    spread = np.std([a.auc for a in areas], ddof=1)
    assert np.mean([a.error for a in areas]) == pytest.approx(spread, rel=0.1)


def test_delong_error_equals_its_definition():
    signal, background = samples(7, 9)
    kernel = (signal[:, None] > background).astype(float)
    variance = kernel.mean(axis=1).var(ddof=1) / 7 + kernel.mean(axis=0).var(ddof=1) / 9
    assert area(signal, background).error == pytest.approx(np.sqrt(variance), rel=1e-12)


def test_one_jet_of_a_kind_has_no_error():
    assert np.isnan(area(np.array([0.5]), np.array([0.1, 0.2])).error)


def test_curve_equals_sklearn_when_short():
    signal, background = samples(50, 60)
    curve = roc_curve(signal, background)
    truth = np.concatenate([np.ones(50), np.zeros(60)])
    expected = metrics.roc_curve(truth, np.concatenate([signal, background]))
    np.testing.assert_array_equal(curve.array(), np.stack(expected))
    assert (curve.n_signal, curve.n_background) == (50, 60)


def test_w41_long_curves_are_thinned_without_visible_change():
    signal, background = samples(40_000, 60_000)
    curve = roc_curve(signal, background)
    assert len(curve.mistag) <= 2000
    whole = roc_curve(signal, background, max_points=10**9)
    assert len(whole.mistag) > 10_000
    # each point left out lies within a step of 1/1000 of both axes of a kept one: efficiency, decades of mistag rate
    before = np.searchsorted(-curve.threshold, -whole.threshold, side="right") - 1
    assert np.abs(curve.efficiency[before] - whole.efficiency).max() < 1.1e-3
    decades = np.log10(whole.mistag[whole.mistag > 0] / curve.mistag[before][whole.mistag > 0])
    assert decades.max() < 1.1e-3 * np.log10(60_000)
    assert metrics.auc(curve.mistag, curve.efficiency) == pytest.approx(area(signal, background).auc, abs=1e-5)


@settings(max_examples=50)
@given(st.integers(2, 300), st.integers(10, 60))
def test_thinning_keeps_ends_and_order(n, most):
    mistag = np.sort(np.random.default_rng(n).random(n))
    kept = thin(mistag, mistag**0.5, most)
    assert len(kept) <= max(most, 2)
    assert kept[0] == 0
    assert kept[-1] == n - 1
    assert (np.diff(kept) > 0).all()


def test_binomial_interval_is_clopper_pearson():
    from scipy import stats

    for k, n in ((0, 10), (3, 10), (10, 10), (1, 1), (500, 1000)):
        expected = stats.binomtest(k, n).proportion_ci(ONE_SIGMA, method="exact")
        low, up = binomial_interval(k, n)
        assert (float(low), float(up)) == pytest.approx((expected.low, expected.high), rel=1e-9)


@settings(max_examples=60)
@given(values, values, st.sampled_from([0.5, 0.2, 0.1, 0.05, 0.9]))
def test_w42_working_point_is_the_loosest_cut_of_all_jets(signal, background, wp):
    point = working_point(signal, background, wp)
    cuts = sorted({-np.inf, *signal, *background})
    allowed = [
        cut for cut in cuts if (background > cut).mean() <= wp and (background > cut).sum() <= wp * len(background)
    ]
    best = max((signal > cut).mean() for cut in allowed)
    if point.reason:
        assert np.isnan(point.threshold)
        assert wp * len(background) < 1 or best == 0
    else:
        assert point.efficiency == best == (signal > point.threshold).mean()
        assert point.mistag == (background > point.threshold).mean() <= wp
        assert point.efficiency == (signal >= point.threshold).mean(), "no jet may lie on the threshold"
        assert point.efficiency_low <= point.efficiency <= point.efficiency_up
        assert point.mistag_low <= point.mistag <= point.mistag_up


def test_w42_working_point_at_a_thousandth_is_exact():
    signal, background = samples(30_000, 50_000)
    point = working_point(signal, background, 0.001)
    assert point.mistag == 50 / 50_000
    assert (background > point.threshold).sum() == 50


def test_w42_too_few_jets_are_named_not_invented():
    point = working_point(np.array([0.9, 0.8]), np.linspace(0, 0.5, 999), 0.001)
    assert point.reason == "999 background jets; a mistag rate of 0.001 needs at least 1000"
    row = point.row()
    assert row["threshold"] is None
    assert row["efficiency"] is None
    json.dumps(row, allow_nan=False)
    assert not working_point(np.array([0.9, 0.8]), np.linspace(0, 0.5, 1000), 0.001).reason


def test_saturated_background_is_named():
    point = working_point(np.ones(5), np.ones(100), 0.1)
    assert "share the highest value" in point.reason


def test_passing_fraction_counts_strictly_greater():
    np.testing.assert_allclose(
        passing_fraction(np.array([0.0, 0.5, 1.0]), np.array([-1, 0, 0.5, 1])), [1, 2 / 3, 1 / 3, 0]
    )


@pytest.mark.parametrize("function", [roc_curve, area, lambda s, b: working_point(s, b, 0.1)])
def test_an_empty_class_is_refused(function):
    with pytest.raises(DataError, match="0 signal and 3 background"):
        function(np.array([]), np.arange(3.0))
