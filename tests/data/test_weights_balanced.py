"""Balanced weights, merged bins, and the report on what weighted sampling makes of each label."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bhive_mltf.data.weighting.balanced import MAX_REDUCTION, balanced, merge_bins, merge_neighbours, region_sums
from bhive_mltf.data.weighting.grid import Grid, reference_shape
from bhive_mltf.data.weighting.methods import WEIGHTINGS, weigh
from bhive_mltf.data.weighting.report import FILE_NAME, WeightingReport
from bhive_mltf.errors import CorruptFileError, ParameterError
from bhive_mltf.testing.jets import write_btag
from tests.helpers.building import build, small_config

GRID = Grid((10.0, 30.0, 60.0, 120.0, 500.0), (-2.5, 0.0, 2.51))
LABELS = ("b", "c", "light")
SHAPE = (3, 4, 2)

counts = hnp.arrays(np.int64, SHAPE, elements=st.sampled_from([0, 0, 1, 3, 40, 60, 700, 12345])).filter(
    lambda h: h[1].any() and h.any(axis=(1, 2)).sum() > 1
)


def weigh_all(histogram, weighting="reference", reference="b"):
    return weigh(np.array(histogram), weighting, grid=GRID, labels=LABELS, reference=reference)


@given(counts, st.sampled_from(WEIGHTINGS))
def test_w10_weights_are_probabilities(histogram, weighting):
    weights = weigh_all(histogram, weighting, "c").weights
    assert weights.shape == SHAPE
    assert ((weights >= 0) & (weights <= 1)).all()
    filled = histogram.any(axis=(1, 2))
    largest = np.where(histogram > 0, weights, 0).max(axis=(1, 2))[filled]
    if weighting == "balanced":
        assert largest.max() == pytest.approx(1)
        assert (weights > 0).all(), "no jet is thrown away, with or without reference jets in its bin"
    else:
        shared = ((histogram > 0) & (histogram[1] > 0)).any(axis=(1, 2))[filled]
        np.testing.assert_allclose(largest, shared.astype(float))


@given(counts)
def test_w10_expected_spectra_have_the_reference_s_shape(histogram):
    found = balanced(histogram, 1)
    for k in np.flatnonzero(histogram.any(axis=(1, 2))):
        drawn = np.zeros(int(found.regions[k].max()) + 1)
        np.add.at(drawn, found.regions[k], histogram[k] * found.weights[k])
        wanted = region_sums(histogram[1], found.regions[k])
        np.testing.assert_allclose(drawn / drawn.sum(), wanted / wanted.sum(), rtol=1e-9)


@given(counts, st.sampled_from([1.0, 3.0, MAX_REDUCTION, np.inf]))
def test_w10_yields_are_equal_as_far_as_labels_reach(histogram, max_reduction):
    found = balanced(histogram, 1, max_reduction=max_reduction)
    filled = np.flatnonzero(histogram.any(axis=(1, 2)))
    drawn = (histogram * found.weights).sum(axis=(1, 2))[filled]
    top = np.array([found.weights[k].max() for k in filled])
    common = drawn.max()
    for yielded, largest in zip(drawn, top, strict=True):
        # less than the common yield is drawn only of a label that gives all that its shape allows
        assert yielded == pytest.approx(common) or largest == pytest.approx(1)
    if max_reduction == np.inf:
        np.testing.assert_allclose(drawn, common)
    if max_reduction == 1:
        np.testing.assert_allclose(top, 1)


@given(counts)
def test_w10_merged_bins_are_rectangles_with_enough_jets(histogram):
    for k in (0, 2):
        regions = merge_bins(histogram[k], histogram[1], 50)
        assert (np.unique(regions) == np.arange(regions.max() + 1)).all()
        for number in range(int(regions.max()) + 1):
            pt, eta = np.nonzero(regions == number)
            assert len(pt) == (np.ptp(pt) + 1) * (np.ptp(eta) + 1)
        if regions.max():
            assert region_sums(histogram[k], regions).min() >= 50
            assert region_sums(histogram[1], regions).min() >= 50


def test_neighbours_are_merged_by_hand():
    assert merge_neighbours(np.array([[9, 1, 5, 6, 1]]), 5).tolist() == [0, 1, 1, 2, 2]
    assert merge_neighbours(np.array([[9, 0, 0, 0]]), 5).tolist() == [0, 0, 0, 0]
    assert merge_neighbours(np.array([[1, 1, 1]]), 5).tolist() == [0, 0, 0]
    assert merge_neighbours(np.array([[9, 9, 9], [0, 9, 9]]), 5).tolist() == [0, 0, 1], "both counts must reach it"


def test_w10_balanced_by_hand():
    """Three labels with the reference's shape up to a factor: 400, 1000 and 20 jets, largest reduction 10."""
    b = np.array([[100, 100], [50, 50], [50, 50], [0, 0]])
    c = np.array([[500, 0], [250, 0], [250, 0], [0, 0]])
    light = np.array([[0, 0], [20, 0], [0, 0], [0, 0]])
    found = balanced(np.array([b, c, light]), 0)
    # light is rare: it may lower the yields to a tenth of 1000 only
    np.testing.assert_allclose(found.weights[0], 100 / 400)
    np.testing.assert_allclose(found.weights[1], 100 / 1000)
    np.testing.assert_allclose(found.weights[2], 1.0)
    equal = balanced(np.array([b, c, light]), 0, max_reduction=np.inf)
    np.testing.assert_allclose(equal.weights[1], 20 / 1000)


def test_w10_sparse_bins_do_not_throttle_balanced_weights():
    histogram = np.full(SHAPE, 500)
    histogram[1, 2, 0] = 1
    assert weigh_all(histogram).report.labels[1].drawn == pytest.approx(8)
    assert weigh_all(histogram, "balanced").report.labels[1].drawn == pytest.approx(4000 * 501 / 1000)


def test_w10_the_throttling_bin_is_named():
    histogram = np.full(SHAPE, 500)
    histogram[1, 2, 0] = 5
    report = weigh_all(histogram).report
    limit = report.labels[1].limit
    assert (limit.pt, limit.eta) == ((60.0, 120.0), (-2.5, 0.0))
    assert (limit.jets, limit.reference_jets) == (5, 500)
    assert limit.factor == pytest.approx(100)
    assert report.labels[0].limit is None
    [warning] = report.warnings()
    assert (
        "c by 60 < pt < 120 GeV, -2.5 < eta < 0 with 5 of its 3505 jets: 40 are drawn per epoch, 100 times fewer than "
        "the median bin allows" in warning
    )
    assert "--weighting balanced" in warning
    assert weigh_all(histogram, "balanced").report.warnings() == []


def test_w10_many_throttled_labels_are_one_sentence():
    labels = [f"l{i}" for i in range(7)]
    histogram = np.full((7, 4, 2), 500)
    for k in range(1, 7):
        histogram[k, 0, 0] = k
    report = weigh(histogram, "reference", grid=GRID, labels=labels, reference="l0").report
    [warning] = report.warnings()
    assert warning.index("l1 by") < warning.index("l2 by") < warning.index("l3 by")
    assert "; and 3 more in weighting.json: widen the bins" in warning
    assert "l4" not in warning


def test_w10_jets_that_are_never_drawn_are_counted():
    histogram = np.full(SHAPE, 100)
    histogram[0, 3] = 0
    report = weigh_all(histogram).report
    assert [each.never_drawn for each in report.labels] == [0, 200, 200]
    [warning] = report.warnings()
    assert "bins without any of the reference b are never drawn: c 200 of 800, light 200 of 800" in warning
    assert [each.never_drawn for each in weigh_all(histogram, "balanced").report.labels] == [0, 0, 0]


def test_effective_sample_size():
    """Two bins of 100 and 300 jets, weights 1 and 1/3: 200 drawn, (100 + 100)^2 / (100 + 300 / 9) = 300."""
    histogram = np.zeros(SHAPE, int)
    histogram[0, :2, 0] = 100
    histogram[1, :2, 0] = 100, 300
    b, c, light = weigh_all(histogram).report.labels
    assert (b.jets, b.drawn, b.n_eff) == (200, 200, 200)
    assert (c.drawn, c.n_eff) == (pytest.approx(200), pytest.approx(300))
    assert (light.jets, light.drawn, light.n_eff, light.shape_missing) == (0, 0, 0, 1)


@given(counts)
def test_effective_sample_size_lies_between_drawn_and_all(histogram):
    for weighting in WEIGHTINGS:
        for each in weigh_all(histogram, weighting, "c").report.labels:
            assert each.drawn <= each.n_eff * (1 + 1e-9)
            assert each.n_eff <= each.jets * (1 + 1e-9)


def test_the_table_has_a_line_per_label():
    histogram = np.full(SHAPE, 500)
    histogram[1, 2, 0] = 5
    lines = weigh_all(histogram).report.table().splitlines()
    assert lines[0] == "weighting reference, reference b"
    assert lines[2].split() == ["b", "4000", "4000", "4000"]
    assert lines[3].split()[:4] == ["c", "3505", "40", lines[3].split()[3]]
    assert lines[3].endswith("x100.0 by 60 < pt < 120 GeV, -2.5 < eta < 0 (5 jets)")


def test_unknown_weighting():
    with pytest.raises(ParameterError, match="--weighting flat does not exist: choose one of reference, balanced"):
        weigh_all(np.ones(SHAPE, int), "flat")


@given(counts)
def test_w10_the_default_is_upstreams(histogram):
    np.testing.assert_array_equal(weigh_all(histogram, reference="c").weights, reference_shape(histogram, 1))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts)
def test_the_report_can_be_read_back(tmp_path, histogram):
    made = weigh_all(histogram, "balanced", "c")
    made.report.write(tmp_path, made.weights)
    report, weights = WeightingReport.read(tmp_path)
    assert report == made.report
    np.testing.assert_array_equal(weights, made.weights)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weights": []}'])
def test_a_damaged_report(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(CorruptFileError, match="weighting.json' is not a report of weights"):
        WeightingReport.read(tmp_path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    names = [("TT_0", 900, "TT"), ("TT_1", 300, "TT"), ("QCD_0", 900, "QCD")]
    return folder, [str(write_btag(folder / f"{n}.root", size, 3 + size, process)) for n, size, process in names]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_w10_the_order_of_the_files_does_not_matter(files, tmp_path, weighting):
    folder, paths = files
    config = small_config(folder)
    one = build(config, paths, tmp_path / "one", weighting=weighting)
    other = build(config, paths[::-1], tmp_path / "other", weighting=weighting, per_job=2)
    assert one.manifest.weighting == weighting
    assert one.manifest.digest == other.manifest.digest
    assert (tmp_path / "one" / FILE_NAME).read_bytes() == (tmp_path / "other" / FILE_NAME).read_bytes()


def test_w10_a_balanced_set_has_balanced_weights(files, tmp_path):
    folder, paths = files
    config = small_config(folder)
    dataset = build(config, paths, tmp_path / "set", weighting="balanced")
    label = np.argmax(dataset.read(0, len(dataset)).truth, axis=1)
    drawn = np.bincount(label, weights=dataset.index.weight)
    np.testing.assert_allclose(drawn, drawn[0], rtol=1e-4)
    assert (dataset.index.weight > 0).all()
    reported = json.loads((tmp_path / "set" / FILE_NAME).read_text())
    assert [each["drawn"] for each in reported["labels"]] == pytest.approx(drawn.tolist(), rel=1e-4)
    assert (reported["weighting"], reported["reference"]) == ("balanced", "isB")
    assert reported["settings"] == {"max_reduction": 10.0, "min_count": 50}


def test_a_set_of_before_the_weightings_is_one_of_upstreams(files, tmp_path):
    folder, paths = files
    directory = tmp_path / "set"
    dataset = build(small_config(folder), paths[:1], directory)
    content = json.loads((directory / "manifest.json").read_text())
    for key in ("weighting", "checksum"):
        content.pop(key, None)
    (directory / "manifest.json").write_text(json.dumps(content))
    assert type(dataset.manifest).read(directory).weighting == "reference"
