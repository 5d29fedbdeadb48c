from __future__ import annotations

import pytest

from bhive_mltf import config
from bhive_mltf.config.four_vectors import FourVectors, find
from bhive_mltf.errors import ConfigError


@pytest.mark.parametrize(
    ("columns", "kind", "names"),
    [
        ("part_px part_py part_pz part_energy", "pxpypze", "part_px part_py part_pz part_energy"),
        ("c_e x c_pz c_ptrel c_py c_px", "pxpypze", "c_px c_py c_pz c_e"),
        ("LT_pt LT_charge LT_px LT_py LT_pz LT_e", "pxpypze", "LT_px LT_py LT_pz LT_e"),
        (
            "jet_pfcand_deta jet_pfcand_pt_log jet_pfcand_pt jet_pfcand_eta jet_pfcand_phi jet_pfcand_energy",
            "ptetaphie",
            "jet_pfcand_pt jet_pfcand_eta jet_pfcand_phi jet_pfcand_energy",
        ),
        (
            "Cpfcan_BtagPf_trackEtaRel Cpfcan_ptrel Cpfcan_pt Cpfcan_eta Cpfcan_phi Cpfcan_e Cpfcan_puppiw",
            "ptetaphie",
            "Cpfcan_pt Cpfcan_eta Cpfcan_phi Cpfcan_e",
        ),
        ("a_px a_py a_pz b_e b_pt b_eta b_phi", "ptetaphie", "b_pt b_eta b_phi b_e"),
    ],
)
def test_recognised_by_name_wherever_they_stand(columns, kind, names):
    for order in (columns.split(), columns.split()[::-1]):
        assert find(order) == [FourVectors(kind=kind, columns=tuple(names.split()))]


@pytest.mark.parametrize(
    "columns",
    [
        "",
        "px py pz e",
        "a_px b_py a_pz a_e",
        "sv_pt sv_deltaR sv_mass",
        "c_pt_log c_eta c_phi c_e",
        "c_ptrel c_eta c_phi c_e",
        "c_pt c_etarel c_phirel c_energy_log",
        "part_px part_py part_pz",
    ],
)
def test_not_recognised(columns):
    assert find(columns.split()) == []


@pytest.mark.parametrize(
    "columns",
    [
        "c_px c_py c_pz c_e c_pt c_eta c_phi",
        "a_px a_py a_pz a_e b_px b_py b_pz b_e",
        "a_pt a_eta a_phi a_e a_energy",
    ],
)
def test_ambiguous(columns):
    assert len(find(columns.split())) == 2


FOUR = ["can_px", "can_py", "can_pz", "can_e"]


def test_w32_config_names_the_four_vectors_not_their_position(write, base):
    """The columns that follow, as in the JetClass set, do not become momenta."""
    base["cpf_candidates"] = [*FOUR, "can_a", "can_b"]
    base["cpf_custom_features"] = [{"can_tanh": "tanh(can_a)"}]
    expected = FourVectors(kind="pxpypze", columns=tuple(FOUR))
    assert config.load(write(base)).group("cpf").four_vectors == expected
    base["four_vectors"] = {"cpf": {"kind": "pxpypze", "columns": FOUR}}
    assert config.load(write(base)).group("cpf").four_vectors == expected


def test_w32_config_keeps_the_kind_for_the_model_to_check(write, base):
    base["cpf_candidates"] = ["can_pt", "can_eta", "can_phi", "can_e"]
    assert config.load(write(base)).group("cpf").four_vectors.kind == "ptetaphie"


def test_a_config_loads_without_unique_four_vectors_and_says_why(write, base):
    group = config.load(write(base)).group("cpf")
    assert group.four_vectors is None
    assert "group cpf: no four columns share a prefix" in group.four_vectors_problem
    base["cpf_candidates"] = [*FOUR, "can_pt", "can_eta", "can_phi"]
    problem = config.load(write(base)).group("cpf").four_vectors_problem
    assert "several sets of columns could be the four-vectors: can_px, can_py, can_pz, can_e or can_pt, " in problem
    assert "four_vectors: {cpf: {kind: ..., columns: [...]}}" in problem


def test_the_key_decides_where_names_do_not(write, base):
    base["cpf_candidates"] = [*FOUR, "can_pt", "can_eta", "can_phi"]
    columns = ["can_pt", "can_eta", "can_phi", "can_e"]
    base["four_vectors"] = {"cpf": {"kind": "ptetaphie", "columns": columns}}
    assert config.load(write(base)).group("cpf").four_vectors.columns == tuple(columns)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({"cfp": {}}, "`cfp` is not a group with columns; nearest: cpf"),
        ({"npf": {}}, "`npf` is not a group with columns"),
        ({"cpf": FOUR}, "is not of the form"),
        ({"cpf": {"kind": "pxpypze"}}, "is not of the form"),
        ({"cpf": {"kind": "ptetaphi", "columns": FOUR}}, "there is no 'ptetaphi'; there are pxpypze, ptetaphie"),
        ({"cpf": {"kind": [], "columns": FOUR}}, "there is no []"),
        ({"cpf": {"kind": "pxpypze", "columns": FOUR[:3]}}, "not a list of four different columns"),
        ({"cpf": {"kind": "pxpypze", "columns": [*FOUR[:3], "can_px"]}}, "not a list of four different columns"),
        ({"cpf": {"kind": "pxpypze", "columns": "can_px"}}, "not a list of four different columns"),
        ({"cpf": {"kind": "pxpypze", "columns": [*FOUR[:3], "can_E"]}}, "`can_E` is not a column of the group cpf"),
        ({"cpf": {"kind": "pxpypze", "columns": [*FOUR[:3], 4]}}, "4 is not a name"),
        ([1], "is not a mapping"),
    ],
)
def test_bad_key(write, base, value, part):
    path = write(base | {"cpf_candidates": FOUR, "four_vectors": value})
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"config {path}, key four_vectors")
    assert part in str(caught.value)
