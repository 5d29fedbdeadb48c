import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.errors import ModelError
from bhive_mltf.evaluation.discriminators import (
    are_probabilities,
    discriminators,
    probabilities,
    safe_name,
    softmax,
)

SIX = ("b", "bb", "leptonicB", "c", "uds", "g")
HLT = ("b", "c", "uds", "g", "taup", "taum")
LT_TAU = ("b", "c", "uds", "g", "tau_p", "tau_m")


def by_label(classes):
    return {d.label: d for d in discriminators(classes)}


def six_class_loop(label, row):
    """Upstream's definitions of 7.2, written out for one jet with the classes at their positions."""
    b, c, uds, g = row[0] + row[1] + row[2], row[3], row[4], row[5]
    light = uds + g
    signal, background = {
        "bvsl": (b, light),
        "bvsc": (b, c),
        "cvsb": (c, b),
        "cvsl": (c, light),
        "bvsall": (b, light + c),
        "uds_vs_g": (uds, g),
    }[label]
    return signal / (signal + background) if signal + background else -1.0


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(-8, 8), min_size=6, max_size=6), min_size=1, max_size=8))
def test_values_equal_upstreams_definitions(rows):
    values = softmax(np.array(rows))
    for label, discriminator in by_label(SIX).items():
        expected = [six_class_loop(label, row) for row in values]
        np.testing.assert_allclose(discriminator.value(values), expected, rtol=1e-12)


VETOES = {"bvsl": {3}, "bvsc": {4, 5}, "cvsb": {4, 5}, "cvsl": {0, 1, 2}, "bvsall": set(), "uds_vs_g": {0, 1, 2, 3}}


def test_six_classes_have_upstreams_list_and_vetoes():
    found = by_label(SIX)
    assert list(found) == list(VETOES)
    for label, veto in VETOES.items():
        discriminator = found[label]
        assert set(range(6)) - {*discriminator.signal, *discriminator.background} == veto


def test_split_counts_each_jet_once_and_drops_the_veto():
    truth = np.array([0, 1, 2, 3, 4, 5, 0])
    values = softmax(np.random.default_rng(1).normal(size=(7, 6)))
    discriminator = by_label(SIX)["bvsl"]
    signal, background = discriminator.split(values, truth)
    whole = discriminator.value(values)
    np.testing.assert_array_equal(signal, whole[[0, 1, 2, 6]])
    np.testing.assert_array_equal(background, whole[[4, 5]])


def test_w39_classes_are_found_by_name_whatever_their_order():
    rng = np.random.default_rng(2)
    values = softmax(rng.normal(size=(50, 6)))
    order = rng.permutation(6)
    shuffled = by_label([SIX[i] for i in order])
    for label, discriminator in by_label(SIX).items():
        np.testing.assert_allclose(shuffled[label].value(values[:, order]), discriminator.value(values), rtol=1e-12)
        assert {order[i] for i in shuffled[label].signal} == set(discriminator.signal)


def test_w39_hlt_classes_count_taus_as_background_of_bvsall():
    found = by_label(HLT)
    assert list(found) == ["bvsl", "bvsc", "cvsb", "cvsl", "bvsall", "uds_vs_g", "tauvsl"]
    assert found["bvsl"].signal == (0,)
    assert found["bvsl"].background == (2, 3)
    assert found["bvsall"].background == (1, 2, 3, 4, 5)
    assert found["tauvsl"].signal == (4, 5)
    assert found["tauvsl"].background == (2, 3)


def test_w39_offline_taus_are_vetoed_everywhere_but_in_tauvsl():
    for classes in (LT_TAU, ("b", "c", "uds", "g", "tau")):
        found = by_label(classes)
        assert found["bvsall"].background == (1, 2, 3)
        with_tau = {label for label, d in found.items() if {*d.signal, *d.background} & set(range(4, len(classes)))}
        assert with_tau == {"tauvsl"}


def test_a_discriminator_needs_its_classes():
    assert list(by_label(("b", "c", "other"))) == ["bvsc", "cvsb"]
    assert list(by_label(("b", "light"))) == ["bvsl"]


def test_jet_class_gets_each_against_qcd_and_one_against_rest(jet_class):
    found = by_label(jet_class)
    assert list(found)[:2] == ["HbbvsQCD", "HccvsQCD"]
    assert [label for label in found if label.endswith("_vs_rest")][:2] == ["QCD_vs_rest", "Hbb_vs_rest"]
    assert len(found) == 9 + 10
    values = softmax(np.random.default_rng(3).normal(size=(20, 10)))
    np.testing.assert_allclose(found["Hcc_vs_rest"].value(values), values[:, 2], rtol=1e-12)
    np.testing.assert_allclose(
        found["HbbvsQCD"].value(values), values[:, 1] / (values[:, 1] + values[:, 0]), rtol=1e-12
    )


def test_two_classes_give_one_discriminator():
    assert list(by_label(("signal", "other"))) == ["signalvsother"]
    assert list(by_label(("QCD", "Hbb"))) == ["HbbvsQCD"]
    assert list(by_label(("QCD_0", "QCD_1"))) == ["QCD_0vsQCD_1"]


def test_one_class_is_refused():
    with pytest.raises(ModelError, match="at least two classes"):
        discriminators(["b"])


def test_zero_denominator_gives_minus_one():
    values = np.array([[0, 0, 0, 1.0, 0, 0], [0.5, 0, 0, 0, 0.5, 0]])
    np.testing.assert_array_equal(by_label(SIX)["bvsl"].value(values), [-1.0, 0.5])


def test_softmax_only_where_rows_do_not_sum_to_one():
    logits = np.random.default_rng(4).normal(size=(30, 3)).astype(np.float32)
    expected = np.exp(logits.astype(np.float64))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(logits), expected, rtol=1e-12)
    assert not are_probabilities(logits)
    assert are_probabilities(expected + 2e-4)
    assert not are_probabilities(expected + 2e-3)
    np.testing.assert_array_equal(probabilities(expected), expected)


def test_softmax_survives_large_logits():
    np.testing.assert_allclose(softmax(np.array([[1e4, 1e4, -1e4]])), [[0.5, 0.5, 0.0]])


def test_labels_are_safe_in_file_names():
    assert safe_name("H->bb/cc $x$") == "H-_bb_cc__x_"
    assert safe_name("../..") == "_.."
    for discriminator in discriminators(("a/b", "c d", "../e")):
        assert "/" not in discriminator.label
        assert not discriminator.label.startswith(".")
