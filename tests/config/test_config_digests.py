from __future__ import annotations

import pytest
import yaml

from bhive_mltf import config

CUSTOM = {"cpf_custom_features": [{"a": "log(can_pt + 1)"}, {"b": "a * 2"}]}


@pytest.fixture
def digests(write, base):
    def digests(**change):
        loaded = config.load(write(base | CUSTOM | change))
        return loaded.dataset_digest, loaded.digest

    return digests


def test_white_space_order_of_keys_and_path_do_not_matter(write, base, digests):
    content = base | CUSTOM
    shuffled = yaml.safe_dump(dict(reversed(content.items())), sort_keys=False, default_flow_style=None, width=40)
    text = "# a comment\n" + shuffled.replace("log(can_pt + 1)", "'np.log( (can_pt)+1 )'")
    assert "np.log" in text
    other = config.load(write(text, "elsewhere/other.yaml"))
    assert (other.dataset_digest, other.digest) == digests()


def test_four_vectors_found_or_named_are_the_same(write, base):
    columns = ["can_px", "can_py", "can_pz", "can_e"]
    base["cpf_candidates"] = columns
    named = base | {"four_vectors": {"cpf": {"kind": "pxpypze", "columns": columns}}}
    assert config.load(write(named)).digest == config.load(write(base)).digest


@pytest.mark.parametrize(
    "change",
    [
        {"treename": "tree2"},
        {"bins_pt": [10, 50, 101]},
        {"bins_eta": [-2.5, 0, 2.51]},
        {"processes": ["QCD", "TT"]},
        {"truths": ["isB", "isUDSG", "isC"]},
        {"truths": {"isB": [{"isB": [1]}], "isC": "isC", "isUDSG": "isUDSG"}},
        {"reference_flavour": "isC"},
        {"global_features": ["jet_eta", "jet_pt"]},
        {"pt_key": "jet_eta"},
        {"n_cpf_candidates": 4},
        {"cpf_candidates": ["can_pt", "can_ptrel", "can_eta"]},
        {"cpf_custom_features": [{"a": "log(can_pt + 2)"}, {"b": "a * 2"}]},
        {"cpf_custom_features": [{"c": "log(can_pt + 1)"}, {"b": "c * 2"}]},
        {"data_precision": "float16"},
    ],
)
def test_what_decides_the_jets_changes_both(digests, change):
    before, after = digests(), digests(**change)
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    "change",
    [
        {"TT": {"pt_min": 20}},
        {"process_weights": {"TT": 2}},
        {"dataset": "ArrowDataset"},
        {"processor": "PFCandidateAndVertexProcessing"},
        {"four_vectors": {"cpf": {"kind": "ptetaphie", "columns": ["can_pt", "can_eta", "a", "b"]}}},
    ],
)
def test_other_settings_change_only_the_whole(digests, change):
    before, after = digests(), digests(**change)
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_a_stale_key_has_the_digest_of_the_right_one(digests):
    assert digests(vtx_features=["sv_x"], n_vtx_features=4) == digests(vtx_features=["sv_x"], n_vtx_candidates=4)


def test_digest_is_the_same_everywhere():
    """A change here makes every existing dataset directory foreign to its config."""
    former = config.load("offline_run3").model_copy(update={"processes": ("TT", "QCD")})
    assert former.dataset_digest.startswith("76a1ab43")
