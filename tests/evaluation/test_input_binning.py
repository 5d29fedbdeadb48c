import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bhive_mltf.evaluation.inputs.binning import N_BUCKETS, TAIL, Binning, Values, bucket_edges, buckets, choose_binning

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, st.integers(1, 300), elements=floats)


def binning_of(values, n_bins=50):
    values = np.asarray(values, np.float32)
    counts = np.bincount(buckets(values), minlength=N_BUCKETS)
    integral = bool((values == np.rint(values)).all())
    return choose_binning(Values(counts, float(values.min()), float(values.max()), integral), n_bins)


@given(arrays)
def test_buckets_rise_with_the_values_and_hold_them(values):
    values = np.sort(values)
    numbers = buckets(values)
    assert (np.diff(numbers.astype(int)) >= 0).all()
    low, high = bucket_edges(numbers)
    assert ((low <= values) & (values <= high)).all()
    normal = (np.abs(values) > 1e-37) & (np.abs(values) < 1e38)
    assert (high - low <= np.abs(values) / 127)[normal].all()


@given(arrays, st.integers(1, 60))
@example(np.float32([3.4028235e38]), 1)
def test_w40_the_range_leaves_a_tail_only(values, n_bins):
    binning = binning_of(values, n_bins)
    assert binning.low < binning.high
    assert np.isfinite([binning.low, binning.high]).all()
    counts = np.bincount(binning.bins(values), minlength=n_bins + 2)
    assert counts.sum() == len(values)
    outside = [values[values < np.float64(binning.low)], values[values > np.float64(binning.high)]]
    assert (counts[0], counts[-1]) == tuple(map(len, outside))
    # what lies outside is a tail, and one value far from the others
    for tail in outside:
        most = np.unique(buckets(tail), return_counts=True)[1].max(initial=0)
        assert len(tail) - most <= TAIL * len(values) + 1


def test_w40_rare_values_are_no_defaults():
    values = np.float32([4, 0, 0.75, 3, 0.5] + 197 * [-0.125])
    assert binning_of(values, 10).high == pytest.approx(0.75, rel=0.01)


@given(hnp.arrays(np.int64, 200, elements=st.integers(-500, 500)))
def test_bins_are_those_of_numpy(numbers):
    values = (numbers / 9 + 0.01).astype(np.float32)
    binning = Binning(-20.0, 30.0, 25)
    counts = np.bincount(binning.bins(values), minlength=27)
    np.testing.assert_array_equal(counts[1:-1], np.histogram(values, 25, (-20, 30))[0])
    assert counts[0] == (values < -20).sum()


def test_the_range_of_a_smooth_spectrum_is_that_of_its_quantiles():
    values = np.random.default_rng(1).exponential(40, 200_000).astype(np.float32) + 20
    binning = binning_of(values)
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    assert binning.low == pytest.approx(low, rel=0.01)
    assert binning.high == pytest.approx(high, rel=0.01)


@pytest.mark.parametrize("default", [-999.0, 1e6])
def test_a_default_far_away_is_left_to_the_under_or_overflow(default):
    values = np.random.default_rng(1).normal(0, 1, 10_000).astype(np.float32)
    values[::10] = default
    binning = binning_of(values)
    assert -4 < binning.low < -2
    assert 2 < binning.high < 4
    assert (binning.bins(values) == (0 if default < 0 else 51)).sum() >= 1000


def test_zeros_are_never_taken_for_a_default():
    values = np.random.default_rng(1).uniform(100, 110, 10_000).astype(np.float32)
    values[::3] = 0
    assert binning_of(values).low == 0


def test_integers_get_bins_of_integer_width_between_them():
    flags = binning_of([0, 1, 1, 0])
    assert (flags.low, flags.high, flags.width) == (-0.5, 49.5, 1)
    charge = binning_of([-1, 0, 1])
    assert (charge.low, charge.width) == (-1.5, 1)
    many = binning_of(np.arange(0, 120))
    assert many.width == 3
    assert np.bincount(many.bins(np.arange(0, 120, dtype=np.float32)))[1:41].tolist() == [3] * 40


@pytest.mark.parametrize("value", [0.25, -3.7, 0.0, 1e30, -1e-40])
def test_a_constant_has_a_bin(value):
    binning = binning_of([value] * 7)
    assert 1 <= binning.bins(np.array([value], np.float32))[0] <= 50


def test_features_without_values():
    assert choose_binning(Values(np.zeros(N_BUCKETS, int), np.inf, -np.inf, True), 10) == Binning(0.0, 1.0, 10)


def test_an_upper_edge_that_is_reached_lies_in_the_last_bin():
    """Distances to a vertex bounded from above at 0: most values are the bound itself."""
    values = np.concatenate([np.linspace(-0.4, 0, 300), np.zeros(900)]).astype(np.float32)
    binning = binning_of(values)
    assert binning.high == 0.0
    assert (binning.bins(values) == 51).sum() == 0


def test_centres():
    assert Binning(0.0, 4.0, 4).centres.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5]
