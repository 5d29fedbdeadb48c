from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bhive_mltf import config
from bhive_mltf.config.truths import OPERATORS, Comparison, Condition, Truth
from bhive_mltf.errors import MissingBranchError


def truth_of(write, base, entry):
    base["truths"] = {"label": entry, "isB": "isB"}
    return config.load(write(base)).truths[0]


def test_list_form_is_a_cast_to_bool(write, base):
    truth = config.load(write(base)).truths[0]
    assert truth.branches == ("isB",)
    values = np.array([0.0, 1.0, 0.5, -1.0, np.nan], np.float32)
    np.testing.assert_array_equal(truth.evaluate({"isB": values}), [False, True, True, True, False])
    np.testing.assert_array_equal(truth.evaluate({"isB": np.array([True, False])}), [True, False])


A = np.array([-2.0, 0.0, 1.0, 5.0, np.nan])
F = np.array([1, 1, 1, 0, 1])


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ([{"a": [0, 5]}], [0, 1, 0, 1, 0]),
        ([{"a": 5}], [0, 0, 0, 1, 0]),
        ([{"a": [{">": 0}]}], [0, 0, 1, 1, 0]),
        ([{"a": {"<=": 0}}], [1, 1, 0, 0, 0]),
        ([{"a": [{"!=": 0}]}], [1, 0, 1, 1, 0]),
        ([{"a": [{"<": -1}, {">=": 5}, 0]}], [1, 1, 0, 1, 0]),
        ([{"a": [{">": "-1e0"}]}, {"a": [{"<": 5}]}], [0, 1, 1, 0, 0]),
        ([{"a": [{">": -9}]}, {"f": [1]}], [1, 1, 1, 0, 0]),
        (["f"], [1, 1, 1, 0, 1]),
        ([{"f": [True]}], [1, 1, 1, 0, 1]),
        ([{"a": [{"==": 1}]}], [0, 0, 1, 0, 0]),
    ],
)
def test_mapping_form_is_and_of_ors(write, base, entry, expected):
    truth = truth_of(write, base, entry)
    np.testing.assert_array_equal(truth.evaluate({"a": A, "f": F}), np.array(expected, bool))


def test_a_text_means_the_branch_of_the_same_name(write, base):
    base["truths"] = {"isB": "isB", "isC": "", "isUDSG": "is_light"}
    loaded = config.load(write(base))
    assert [truth.branches for truth in loaded.truths] == [("isB",), ("isC",), ("isUDSG",)]
    [warning] = loaded.warnings
    assert "'is_light' means the branch isUDSG itself" in warning


comparisons = st.builds(Comparison, operator=st.sampled_from(list(OPERATORS)), value=st.integers(-2, 2).map(float))
conditions = st.builds(
    Condition, branch=st.sampled_from("ab"), any_of=st.lists(comparisons, min_size=1, max_size=3).map(tuple)
)


@given(st.lists(conditions, min_size=1, max_size=3), st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_agrees_with_plain_python(items, numbers):
    values = {"a": np.array(numbers), "b": np.array(numbers[::-1], np.float32)}
    expected = [
        all(any(OPERATORS[c.operator](float(values[i.branch][k]), c.value) for c in i.any_of) for i in items)
        for k in range(len(numbers))
    ]
    truth = Truth(label="t", conditions=tuple(items))
    np.testing.assert_array_equal(truth.evaluate(values), expected)


def test_missing_branch():
    truth = Truth(label="isB", conditions=(Condition(branch="isB", any_of=(Comparison(operator="==", value=1),)),))
    with pytest.raises(MissingBranchError, match="truth isB: there is no branch `isB`; nearest: isBB"):
        truth.evaluate({"isBB": F})


def hlt_jets(**changed):
    """One jet of each label, in the order of hlt_run3."""
    n = 13
    jets = {
        "jet_muflav": np.zeros(n),
        "jet_elflav": np.zeros(n),
        "jet_tauflav": np.array([0.0] * 11 + [1, 1]),
        "jet_taucharge": np.array([0.0] * 11 + [1, -1]),
        "jet_genmatch_pt": np.full(n, 50.0),
        "jet_genmatch_lep_vis_pt": np.array([0.0] * 11 + [20, 20]),
        "jet_hflav": np.array([5.0] * 5 + [4] * 3 + [0] * 5),
        "jet_pflav": np.array([5.0] * 5 + [4] * 3 + [2, -3, 21, 0, 0]),
    }
    jets["jet_genmatch_hflav"], jets["jet_genmatch_pflav"] = jets["jet_hflav"], jets["jet_pflav"]
    flags = ["isB", "isGBB", "isBB", "isLeptonicB", "isLeptonicB_C", "isC", "isGCC", "isCC", "isUD", "isS", "isG"]
    for k, flag in enumerate(flags):
        jets[flag] = (np.arange(n) == k).astype(np.float32)
    return jets | changed


def hlt_table(jets):
    return np.stack([truth.evaluate(jets) for truth in config.load("hlt_run3").truths])


def test_hlt_labels():
    np.testing.assert_array_equal(hlt_table(hlt_jets()), np.eye(13, dtype=bool))


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({"jet_muflav": np.ones(13)}, range(13)),
        ({"jet_genmatch_pt": np.zeros(13)}, range(11)),
        ({"jet_genmatch_lep_vis_pt": np.zeros(13)}, (11, 12)),
        ({"jet_hflav": np.full(13, 5.0)}, range(5, 11)),
        ({"jet_pflav": np.full(13, 7.0)}, (8, 9, 10)),
        ({"jet_genmatch_pt": np.full(13, np.nan)}, range(11)),
    ],
)
def test_hlt_conditions_are_joined_by_and(changed, lost):
    expected = np.eye(13, dtype=bool)
    expected[list(lost)] = False
    np.testing.assert_array_equal(hlt_table(hlt_jets(**changed)), expected)
