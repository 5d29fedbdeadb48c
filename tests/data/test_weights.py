"""Reference-shape weights against the formula written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bhive_mltf.data.weighting.grid import Grid, check_labels, reference_shape
from bhive_mltf.errors import DataError

GRID = Grid((10.0, 30.0, 60.0, 120.0), (-2.5, 0.0, 2.51))
LABELS = ("b", "c", "light")


def by_hand(histogram, reference):
    """Fact by fact: w = (R / max R) / (H / max H), over its largest value, 1 in empty bins."""
    result = np.empty(histogram.shape)
    R = histogram[reference]
    for k, H in enumerate(histogram):
        w = {}
        for i in range(H.shape[0]):
            for j in range(H.shape[1]):
                if H[i, j]:
                    w[i, j] = (R[i, j] / R.max()) / (H[i, j] / H.max())
        largest = max(w.values(), default=0) or 1
        for i in range(H.shape[0]):
            for j in range(H.shape[1]):
                result[k, i, j] = w[i, j] / largest if (i, j) in w else 1
    return result


counts = hnp.arrays(np.int64, (3, 3, 2), elements=st.sampled_from([0, 0, 1, 2, 7, 100, 12345])).filter(
    lambda h: h[1].any()
)


@given(counts)
def test_w10_upstreams_weights_as_they_are(histogram):
    weights = reference_shape(histogram, 1)
    np.testing.assert_allclose(weights, by_hand(histogram, 1), rtol=1e-12)
    assert ((weights >= 0) & (weights <= 1)).all()


@given(counts)
def test_sampling_gives_each_label_the_shape_of_the_reference(histogram):
    weights = reference_shape(histogram, 1)
    for k in range(3):
        sampled = np.where(histogram[k] > 0, histogram[k] * weights[k], 0)
        shared = histogram[k] > 0
        if (histogram[1][shared] > 0).any():
            ratio = sampled[shared] / sampled[shared].sum()
            np.testing.assert_allclose(ratio, histogram[1][shared] / histogram[1][shared].sum(), rtol=1e-9)


def test_reference_keeps_all_its_jets():
    histogram = np.array([[[5, 0], [3, 2], [1, 1]], [[4, 1], [0, 0], [9, 9]], [[0, 0]] * 3])
    np.testing.assert_array_equal(reference_shape(histogram, 1)[1], 1.0)


def test_bins_and_lookup():
    kinematics = np.array([[10, -2.5], [29.99, -0.01], [30, 0], [119, 2.5], [59, 1]], np.float32)
    pt, eta = GRID.bins(kinematics)
    assert pt.tolist() == [0, 0, 1, 2, 1]
    assert eta.tolist() == [0, 0, 1, 1, 1]
    values = np.arange(18, dtype=float).reshape(3, 3, 2)
    truth = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]], bool)
    # With several labels the first one decides.
    assert GRID.look_up(values, kinematics, truth).tolist() == [0, 6, 15, 11, 3]


def test_w09_values_rounded_over_an_edge_stay_in_the_outer_bin():
    kinematics = np.array([[9.9999, 0], [120.0, 0], [50, 2.52], [50, -2.6]], np.float32)
    pt, eta = GRID.bins(kinematics)
    assert pt.tolist() == [0, 2, 1, 1]
    assert eta.tolist() == [1, 1, 1, 0]


def test_histogram_counts_every_label():
    kinematics = np.array([[15, -1], [15, -1], [100, 1]], np.float32)
    truth = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], bool)
    histogram = GRID.histogram(kinematics, truth)
    assert histogram.dtype == np.int64
    assert histogram[:, 0, 0].tolist() == [2, 1, 0]
    assert histogram.sum(axis=(1, 2)).tolist() == [2, 1, 1]
    assert histogram[2, 2, 1] == 1


def filled(*labels):
    histogram = np.zeros((3, 3, 2), np.int64)
    for label in labels:
        histogram[LABELS.index(label), 1, 1] = 10
    return histogram


def test_w10_nothing_to_warn_of():
    assert check_labels(filled("b", "c", "light"), LABELS, "b", "x") == []


def test_w10_other_empty_labels_are_a_warning():
    assert check_labels(filled("b", "light"), LABELS, "b", "x") == ["no jets of the truth labels c of config x"]


def test_w10_labels_that_are_never_drawn_are_a_warning():
    histogram = filled("b", "c", "light")
    histogram[2] = 0
    histogram[2, 0, 0] = 77
    [warning] = check_labels(histogram, LABELS, "b", "x")
    assert "light shares no pt-eta bin with the reference flavour b: its 77 jets" in warning
    assert reference_shape(histogram, 0)[2, 0, 0] == 0


@pytest.mark.parametrize(
    ("histogram", "reference", "message"),
    [
        (filled("b", "c"), "light", "reference flavour light has no jets; labels with jets: b, c: "),
        (filled("b", "c"), "", "an empty reference flavour .* labels with jets: b, c: "),
        (filled("b"), "b", r"only one truth label of config x has jets \(b\).*c, light"),
    ],
)
def test_labels_without_jets(histogram, reference, message):
    with pytest.raises(DataError, match=message):
        check_labels(histogram, LABELS, reference, "x")
