"""What a config may not say, as a table, and what it may."""

from __future__ import annotations

import pytest

from bhive_mltf import config
from bhive_mltf.errors import ConfigError, ExpressionError, UnknownKeyError

CUSTOM = "cpf_custom_features"

BAD = [
    ({"npf_candidate": []}, UnknownKeyError, ["key npf_candidate:", "nearest: npf_candidates"]),
    ({"TTT": {"pt_min": 1}}, UnknownKeyError, ["`TTT`", "not one of processes", "TT"]),
    ({"TT": 3}, ConfigError, ["key TT:", "3 is not a mapping"]),
    ({"TT": {"ptmin": 3}}, UnknownKeyError, ["`ptmin` is not a cut", "nearest: pt_min"]),
    ({"TT": {"pt_min": "low"}}, ConfigError, ["key TT.pt_min", "'low' is not a number"]),
    ({"TT": {"eta_min": 2, "eta_max": -2}}, ConfigError, ["eta_min 2 is not below eta_max -2"]),
    ({"treename": None}, ConfigError, ["the key treename is missing"]),
    ({"treename": 3}, ConfigError, ["key treename: 3 is not a name"]),
    ({"truths": None, "reference_flavour": None}, ConfigError, ["the key truths is missing"]),
    ({"truths": []}, ConfigError, ["`isB` is not a label"]),
    ({"truths": "isB"}, ConfigError, ["key truths", "'isB' is not a list"]),
    ({"truths": ["isB", "isB"]}, ConfigError, ["listed more than once: isB"]),
    ({"truths": ["isB", 1]}, ConfigError, ["1 is not a name"]),
    ({"truths": {"isB": None}}, ConfigError, ["key truths.isB", "None is not a list of conditions"]),
    ({"truths": {"isB": []}}, ConfigError, ["[] is not a list of conditions"]),
    ({"truths": {"isB": [{"a": []}]}}, ConfigError, ["truths.isB.a", "no values"]),
    ({"truths": {"isB": [{"a": [1], "b": [1]}]}}, ConfigError, ["one branch per item"]),
    ({"truths": {"isB": [[1]]}}, ConfigError, ["one branch per item"]),
    ({"truths": {"isB": [{"a": [{"=": 1}]}]}}, ConfigError, ["'=' is not a comparison; there are == !="]),
    ({"truths": {"isB": [{"a": [{">": 1, "<": 3}]}]}}, ConfigError, ["joined by AND"]),
    ({"truths": {"isB": [{"a": ["x"]}]}}, ConfigError, ["'x' is not a number"]),
    ({"truths": {"isB": [{"a": [{">": "x"}]}]}}, ConfigError, ["'x' is not a number"]),
    ({"reference_flavour": "isUDSGX"}, ConfigError, ["`isUDSGX` is not a label of truths; nearest: isUDSG"]),
    ({"bins_pt": [10]}, ConfigError, ["key bins_pt", "one edge makes no bin"]),
    ({"bins_pt": [10, 10]}, ConfigError, ["edges must ascend, but 10 is followed by 10"]),
    ({"bins_eta": [1, 0]}, ConfigError, ["key bins_eta", "1 is followed by 0"]),
    ({"bins_eta": "1, 2"}, ConfigError, ["is not a list"]),
    ({"bins_eta": [0, True]}, ConfigError, ["True is not a number"]),
    ({"bins_eta": [0, "x"]}, ConfigError, ["'x' is not a number"]),
    ({"bins_eta": [0, float("inf")]}, ConfigError, ["inf is not finite"]),
    ({"bins_eta": [0, "1e999"]}, ConfigError, ["'1e999' is not finite"]),
    ({"bins_eta": [0, 10**400]}, ConfigError, ["is not a number"]),
    ({"bins_pt": []}, ConfigError, ["the key bins_pt is missing or empty"]),
    ({"processes": []}, ConfigError, ["the list is empty"]),
    ({"processes": "TT"}, ConfigError, ["'TT' is not a list"]),
    ({"processes": [False]}, ConfigError, ["False is not a name", "quotes"]),
    ({"process_weights": {"DY": 1}}, ConfigError, ["`DY` is not one of processes"]),
    ({"process_weights": {"TT": -1}}, ConfigError, ["process_weights.TT", "-1 is negative"]),
    ({"process_weights": {"TT": 0, "QCD": 0}}, ConfigError, ["all weights are 0"]),
    ({"process_weights": [1, 2]}, ConfigError, ["[1, 2] is not a mapping"]),
    ({"pt_key": "jet_p"}, ConfigError, ["key pt_key", "`jet_p` is not in global_features", "jet_pt"]),
    ({"global_features": ["jet_pt"]}, ConfigError, ["key eta_key", "`jet_eta` is not in global_features"]),
    ({"global_features": None}, ConfigError, ["key pt_key", "nearest: none"]),
    ({"dataset": "NumpyDataset"}, ConfigError, ["no `NumpyDataset` here; there are ArrowDataset, LZ4Dataset"]),
    ({"processor": "PairedTaggerProcessor"}, ConfigError, ["there are LZ4Processing, PFCandidateAndVertex"]),
    ({"processor": "L1PFCandidateAndVertexProcessing"}, ConfigError, ["no `L1PFCandidate"]),
    ({"data_precision": "float64"}, ConfigError, ["key data_precision", "there are float32, float16"]),
    ({"cpf_candidates": ["a", "b", "a"]}, ConfigError, ["key cpf_candidates", "more than once: a"]),
    ({"cpf_candidates": ["a", " "]}, ConfigError, ["' ' is not a name"]),
    ({"n_cpf_candidates": 2.5}, ConfigError, ["2.5 is not an integer"]),
    ({"n_cpf_candidates": True}, ConfigError, ["True is not an integer"]),
    ({"n_cpf_candidates": -1}, ConfigError, ["-1 is not an integer from 0 to 65535"]),
    ({"n_cpf_candidates": "3"}, ConfigError, ["'3' is not an integer"]),
    ({CUSTOM: {"a": "can_pt"}}, ConfigError, ["is not a list"]),
    ({CUSTOM: ["a"]}, ConfigError, ["'a' is not of the form newname"]),
    ({CUSTOM: [{"a": "can_pt", "b": "can_pt"}]}, ConfigError, ["is not of the form"]),
    ({CUSTOM: [{"can_pt": "can_eta"}]}, ConfigError, ["can_pt is a branch of cpf_candidates too"]),
    ({CUSTOM: [{"a": "can_pt"}, {"a": "can_eta"}]}, ConfigError, ["more than once: a"]),
    ({CUSTOM: [{"a": 3}]}, ExpressionError, [f"key {CUSTOM}.a", "3 is not text"]),
    ({CUSTOM: [{"a": "logg(can_pt)"}]}, ExpressionError, [f"key {CUSTOM}.a", "`logg`", "log"]),
    ({CUSTOM: [{"a": "2 * a"}]}, ExpressionError, ["uses a, which is not defined above it"]),
    ({CUSTOM: [{"a": "2 * b"}, {"b": "can_pt"}]}, ExpressionError, [f"{CUSTOM}.a", "uses b"]),
    (
        {"global_custom_features": [{"g": "jet_pt"}], CUSTOM: [{"a": "g"}]},
        ExpressionError,
        ["uses g, a custom feature of the group global"],
    ),
]


@pytest.mark.parametrize(("change", "error", "parts"), BAD)
def test_refused_with_file_and_key(write, base, change, error, parts):
    path = write({key: value for key, value in (base | change).items() if value is not None})
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert type(caught.value) is error
    for part in [f"config {path}", *parts]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("group", "key", "length"),
    [("cpf", "cpf_candidates", "n_cpf_candidates"), ("vtx", "vtx_features", "n_vtx_candidates")],
)
def test_w12_columns_without_candidates_are_refused(write, base, group, key, length):
    with pytest.raises(ConfigError, match=rf"key {length}: 0 candidates, but 1 columns of the group {group}"):
        config.load(write(base | {key: ["a"], length: 0}))


def test_w12_one_candidate_is_fine(write, base):
    assert config.load(write(base | {"n_cpf_candidates": 1})).group("cpf").length == 1


def test_w12_stale_vertex_key_counts(write, base):
    loaded = config.load(write(base | {"vtx_features": ["sv_pt"], "n_vtx_features": 4}))
    assert loaded.group("vtx").length == 4
    [warning] = loaded.warnings
    assert "n_vtx_features is taken for n_vtx_candidates" in warning


def test_w12_stale_vertex_key_yields_to_the_right_one(write, base):
    loaded = config.load(write(base | {"vtx_features": ["sv_pt"], "n_vtx_features": 4, "n_vtx_candidates": 5}))
    assert loaded.group("vtx").length == 5
    assert "n_vtx_features is ignored" in loaded.warnings[0]


def test_w12_processes_have_a_default(write, base):
    del base["processes"]
    assert config.load(write(base)).processes == ("default",)
    assert config.load(write(base | {"processes": None})).processes == ("default",)


def test_other_stale_keys(write, base):
    loaded = config.load(
        write(base | {"process-weights": {"TT": 2}, "pair_candidates": ["pair_x"], "n_pair_candidates": 300})
    )
    assert loaded.process_weights == {"TT": 2.0}
    assert len(loaded.warnings) == 3
    assert "pair_x" not in loaded.branches


def test_process_listed_twice_is_a_warning(write, base):
    loaded = config.load(write(base | {"processes": ["TT", "QCD", "TT"]}))
    assert loaded.processes == ("TT", "QCD")
    assert "listed more than once: TT" in loaded.warnings[0]


def test_numbers_that_yaml_reads_as_text(write, base):
    text = "bins_pt: [1e-3, 1e3]\nbins_eta: [-2.5, 2.5]\nTT: {pt_min: 1e1}\n"
    rest = {key: value for key, value in base.items() if not key.startswith("bins")}
    loaded = config.load(write(text + "".join(f"{key}: {value}\n" for key, value in rest.items())))
    assert loaded.bins_pt == (1e-3, 1e3)
    assert loaded.process_cuts["TT"].pt_min == 10.0
    assert loaded.process_cuts["TT"].pt_max is None


def test_a_group_without_columns_may_have_a_length(write, base):
    loaded = config.load(write(base | {"n_npf_candidates": 25, "npf_candidates": []}))
    assert [group.name for group in loaded.groups] == ["global", "cpf"]
    with pytest.raises(KeyError):
        loaded.group("npf")


def test_custom_features_follow_the_plain_and_use_each_other(write, base):
    custom = [{"a": "log(can_pt / jet_pt)"}, {"b": "a ** 2 + other"}]
    loaded = config.load(write(base | {CUSTOM: custom}))
    group = loaded.group("cpf")
    assert group.columns == ("can_pt", "can_eta", "can_ptrel", "a", "b")
    assert loaded.branches == (
        *("jet_pt", "jet_eta", "can_pt", "can_eta", "can_ptrel", "other"),
        *("isB", "isC", "isUDSG"),
    )


def test_with_reference(write, base):
    loaded = config.load(write(base))
    assert config.with_reference(loaded, "") is loaded
    assert config.with_reference(loaded, "isC").reference_flavour == "isC"
    with pytest.raises(ConfigError, match="reference flavour isX is no truth label; there are isB, isC, isUDSG"):
        config.with_reference(loaded, "isX")


def test_the_reference_flavour_may_come_later(write, base):
    del base["reference_flavour"]
    assert config.load(write(base)).reference_flavour == ""
