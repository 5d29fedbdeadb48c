"""The shipped configs: upstream's facts, upstream's own form of each, and real branches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml

from bhive_mltf import config
from bhive_mltf.config.loader import own_folder

NAMES = (
    "offline_run3",
    "DeepJet_AK4",
    "mod_offline_run3",
    "part_run3",
    "part_fp16_run3",
    "UParT_v0_run3",
    "part_run3_lt",
    "part_run3_lt_fp16",
    "hlt_run3",
    "jet_class",
)

# Name -> columns and candidates per group, labels, bins in pt and eta, reference.
FACTS = {
    "offline_run3": ({"global": (15, 1), "cpf": (16, 25), "npf": (6, 25), "vtx": (12, 4)}, 11, 19, 9, "isB"),
    "DeepJet_AK4": ({"global": (15, 1), "cpf": (16, 25), "npf": (6, 25), "vtx": (12, 5)}, 12, 19, 9, "isB"),
    "part_run3": ({"global": (15, 1), "cpf": (20, 26), "npf": (10, 25), "vtx": (15, 5)}, 11, 19, 10, "isB"),
    "part_fp16_run3": ({"global": (15, 1), "cpf": (20, 26), "npf": (10, 25), "vtx": (15, 5)}, 11, 19, 10, "isB"),
    "mod_offline_run3": ({"global": (21, 1), "cpf": (24, 25), "npf": (14, 25), "vtx": (18, 5)}, 12, 19, 9, "isB"),
    "UParT_v0_run3": ({"global": (17, 1), "cpf": (20, 26), "npf": (10, 25), "vtx": (15, 5)}, 11, 19, 10, "isB"),
    "part_run3_lt": (
        {"global": (11, 1), "cpf": (34, 26), "npf": (14, 25), "vtx": (18, 5), "lt": (28, 6)},
        22,
        31,
        12,
        "isB",
    ),
    "part_run3_lt_fp16": (
        {"global": (9, 1), "cpf": (33, 25), "npf": (14, 20), "vtx": (18, 5), "lt": (28, 6)},
        22,
        17,
        10,
        "isC",
    ),
    "hlt_run3": ({"global": (17, 1), "cpf": (26, 50), "vtx": (14, 5)}, 13, 12, 10, "label_b"),
    "jet_class": ({"global": (15, 1), "cpf": (23, 128)}, 10, 17, 10, "label_Hbb"),
}


@pytest.mark.parametrize("name", NAMES)
def test_facts(name):
    loaded = config.load(name)
    groups, n_truths, n_pt, n_eta, reference = FACTS[name]
    assert {group.name: (len(group.columns), group.length) for group in loaded.groups} == groups
    assert (len(loaded.truths), len(loaded.bins_pt) - 1, len(loaded.bins_eta) - 1) == (n_truths, n_pt, n_eta)
    assert loaded.reference_flavour == reference
    assert loaded.dataset == "ArrowDataset"
    assert loaded.warnings == ()


def test_jet_class():
    loaded = config.load("jet_class")
    assert 15 + 128 * len(loaded.group("cpf").columns) + 1 + len(loaded.truths) + 1 == 2971
    assert loaded.group("cpf").columns[12:17] == ("part_px", "part_py", "part_pz", "part_energy", "part_logpt")
    assert loaded.group("cpf").four_vectors.columns == ("part_px", "part_py", "part_pz", "part_energy")
    np.testing.assert_allclose(np.diff(loaded.bins_pt), 500 / 17, rtol=1e-5)
    for k, process in enumerate(loaded.processes):
        assert not any(earlier in process for earlier in loaded.processes[:k])


def test_four_vectors_are_named_where_there_are_any():
    for name, kinds in {
        "part_run3": {"cpf": "ptetaphie", "npf": "ptetaphie", "vtx": "ptetaphie"},
        "UParT_v0_run3": {"cpf": "ptetaphie", "npf": "ptetaphie", "vtx": "ptetaphie"},
        "mod_offline_run3": {"cpf": "pxpypze", "npf": "pxpypze", "vtx": "pxpypze"},
        "part_run3_lt": {"cpf": "pxpypze", "npf": "pxpypze", "vtx": "pxpypze", "lt": "pxpypze"},
        "part_run3_lt_fp16": {"cpf": "pxpypze", "npf": "pxpypze", "vtx": "pxpypze", "lt": "pxpypze"},
        "hlt_run3": {"cpf": "ptetaphie", "vtx": "ptetaphie"},
        "jet_class": {"cpf": "pxpypze"},
    }.items():
        assert {key: value["kind"] for key, value in raw(name)["four_vectors"].items()} == kinds
        assert all(config.load(name).group(group).four_vectors.kind == kind for group, kind in kinds.items())


STALE_VERTICES = ("offline_run3", "DeepJet_AK4", "mod_offline_run3")
PAIRS = ("part_run3_lt", "part_run3_lt_fp16")


def raw(name: str) -> dict[str, Any]:
    return yaml.safe_load((own_folder() / f"{name}.yml").read_text())


def positional(name: str) -> dict[str, Any]:
    """The shipped config as upstream writes it."""
    content = raw(name)
    content.pop("four_vectors", None)
    del content["dataset"]
    content["processor"] = "LZ4Processing"
    if name in STALE_VERTICES:
        content["n_vtx_features"] = content.pop("n_vtx_candidates")
    if name == "hlt_run3":
        content["processes"].append("HTo2ZdTo2Mu2X")
    if name in PAIRS:
        content |= {"pair_candidates": ["pair_pca_distpv", "pair_pca_distance"], "n_pair_candidates": 300}
    if name == "jet_class":
        del content["processes"]
    return content


@pytest.mark.parametrize("name", NAMES)
def test_upstream_form_loads_to_the_same(name, write):
    ours, theirs = config.load(name), config.load(write(positional(name), f"{name}.yml"))
    for group, other in zip(ours.groups, theirs.groups, strict=True):
        # Only the sentence on missing four-vectors names the file.
        change = {"four_vectors_problem": group.four_vectors_problem}
        if name == "mod_offline_run3":  # lists two kinds of four-vectors, and its model needs none
            change["four_vectors"] = group.four_vectors
        assert other.model_copy(update=change) == group
    assert theirs.truths == ours.truths
    half = "fp16" in name
    assert theirs.dataset == ("ArrowDataset" if half else "LZ4Dataset")
    stale = {**dict.fromkeys(STALE_VERTICES, "n_vtx_features"), **dict.fromkeys(PAIRS, "pair_candidates")}
    stale["hlt_run3"] = "HTo2ZdTo2Mu2X"
    assert len(theirs.warnings) == (2 if name in PAIRS else name in stale) + half
    assert stale.get(name, "") in "".join(theirs.warnings)
    if name == "jet_class":
        assert theirs.processes == ("default",)
    else:
        assert theirs.dataset_digest == ours.dataset_digest


@pytest.mark.parametrize("name", NAMES)
def test_upstream_columns_last_are_still_the_four_vectors(name, write):
    """Upstream's convention, the four-vector as the last four plain columns, needs no key."""
    for group in config.load(name).groups:
        if group.name == "global" or group.four_vectors is None or group.custom or name == "mod_offline_run3":
            continue
        assert group.columns[-4:] == group.four_vectors.columns


def test_newest_upstream_config_with_px_and_pt(write):
    """The four-vectors of part_run3_lt: px, py, pz, e, though pt is there too."""
    four = ["px", "py", "pz", "e"]
    content = {
        "treename": "deepntuplizer/tree",
        "truths": ["isB", "isTaup1h0p_"],
        "global_features": ["jet_pt", "jet_eta", "jet_phi"],
        "n_cpf_candidates": 26,
        "n_lt_candidates": 6,
        "n_pair_candidates": 300,
        "cpf_candidates": [f"Cpfcan_{c}" for c in ("BtagPf_trackEtaRel", "ptrel", "pt", "charge", "HadFrac", *four)],
        "lt_candidates": [f"LT_{c}" for c in ("puppiw", "pt", *four)],
        "pair_candidates": ["pair_pca_distpv"],
    }
    loaded = config.load(write(content))
    for name, prefix in (("cpf", "Cpfcan_"), ("lt", "LT_")):
        assert loaded.group(name).four_vectors.columns == tuple(prefix + c for c in four)
    assert len(loaded.warnings) == 2


def test_example_of_upstream_custom_features(write, base):
    base |= {
        "global_features": ["jet_pt", "jet_eta", "jet_phi"],
        "global_custom_features": [
            {"jet_px": "jet_pt * np.cos(jet_phi)"},
            {"jet_py": "jet_pt * np.sin(jet_phi)"},
            {"jet_pz": "jet_pt * numpy.sinh(jet_eta)"},
        ],
        "cpf_custom_features": [{"can_mass": "np.sqrt(np.maximum(can_e**2 - (can_pt*np.cosh(can_eta))**2, 0))"}],
    }
    loaded = config.load(write(base))
    assert "can_e" in loaded.branches
    jet = {"jet_pt": np.array([3.0]), "jet_eta": np.array([0.5]), "jet_phi": np.array([0.3])}
    px, py, _ = (feature.parse().evaluate(jet) for feature in loaded.group("global").custom)
    np.testing.assert_allclose(np.hypot(px, py), 3.0)


def test_jet_class_features_have_the_right_values():
    values = {
        "part_px": np.array([3.0, 0.0]),
        "part_py": np.array([4.0, 0.0]),
        "part_energy": np.array([10.0, 1.0]),
        "part_deta": np.array([0.3, 0.0]),
        "part_dphi": np.array([-0.4, 0.0]),
        "part_d0val": np.array([-100.0, 0.0]),
        "part_dzval": np.array([0.5, 0.0]),
        "jet_pt": np.array([500.0, 500.0]),
        "jet_energy": np.array([1000.0, 1000.0]),
    }
    features = config.load("jet_class").group("cpf").custom
    first = [feature.parse().evaluate(values)[0] for feature in features]
    np.testing.assert_allclose(first, [np.log(5), np.log(10), np.log(0.01), np.log(0.01), 0.5, -1.0, np.tanh(0.5)])
    assert features[0].parse().evaluate(values)[1] == -np.inf
