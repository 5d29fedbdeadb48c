"""The jet factory."""

import numpy as np
import pytest
import uproot

from bhive_mltf import config as configs
from bhive_mltf.testing import btag_jets, jetclass_jets, lost_track_jets
from bhive_mltf.testing.jets import write_btag, write_hlt, write_jetclass, write_lost_tracks


@pytest.mark.parametrize(
    ("write", "config"),
    [
        (write_btag, "offline_run3"),
        (write_btag, "DeepJet_AK4"),
        (write_btag, "part_run3"),
        (write_jetclass, "jet_class"),
        (write_hlt, "hlt_run3"),
        (write_lost_tracks, "part_run3_lt"),
        (write_lost_tracks, "part_run3_lt_fp16"),
        (write_lost_tracks, "UParT_v0_run3"),
        (write_lost_tracks, "mod_offline_run3"),
    ],
)
def test_files_have_what_the_configs_read(write, config, tmp_path):
    config = configs.load(config)
    tree = uproot.open(write(tmp_path / "x.root", 50, 1))[config.treename]
    assert set(config.branches) <= set(tree.keys())
    assert tree.num_entries == 50


@pytest.mark.parametrize(
    "write",
    [write_btag, *(pytest.param(w, marks=pytest.mark.long) for w in (write_jetclass, write_hlt, write_lost_tracks))],
)
def test_same_arguments_same_bytes(write, tmp_path):
    first = write(tmp_path / "x.root", 2100, 3).read_bytes()
    assert write(tmp_path / "x.root", 2100, 3).read_bytes() == first
    assert write(tmp_path / "x.root", 2100, 4).read_bytes() != first


@pytest.mark.parametrize("process", ["TT", "QCD"])
def test_btag_labels_are_exclusive(process):
    jets = btag_jets.btag_jets(500, 1, process)
    assert (sum(jets.scalars[label] for label in btag_jets.LABELS) == 1).all()
    np.testing.assert_array_equal(jets.scalars["isUD"], jets.scalars["isU"] + jets.scalars["isD"])


def test_lost_track_jets_have_one_label_and_momenta_that_fit():
    jets = lost_track_jets.lost_track_jets(400, 1)
    labels = (*btag_jets.LABELS, *lost_track_jets.TAU_LABELS)
    assert (sum(jets.scalars[label] for label in labels) == 1).all()
    assert all(jets.scalars[label].any() for label in lost_track_jets.TAU_LABELS)
    _, tracks = jets.lists["n_LT"]
    np.testing.assert_allclose(np.hypot(tracks["LT_px"], tracks["LT_py"]), tracks["LT_pt"], rtol=1e-5)
    assert (tracks["LT_e"] > np.sqrt(sum(tracks[f"LT_{axis}"] ** 2 for axis in ("px", "py", "pz")))).all()
    matched = jets.scalars["gen_pt"] > 0
    assert 0 < (~matched).sum() < 60
    assert (jets.scalars["gen_pt_WithNu"] >= jets.scalars["gen_pt"]).all()


def test_b_jets_have_displaced_tracks():
    jets = btag_jets.btag_jets(2000, 1)
    counts, tracks = jets.lists["n_Cpfcand"]
    jet = np.repeat(np.arange(2000), counts)
    b = jets.scalars["isB"][jet] == 1
    light = jets.scalars["isUD"][jet] == 1
    sip = tracks["Cpfcan_BtagPf_trackSip2dSig"]
    assert sip[b].mean() > 2 + sip[light].mean()
    assert (np.diff(sip)[np.diff(jet) == 0] <= 0).all()


def test_jetclass_branches_and_types(tmp_path):
    tree = uproot.open(write_jetclass(tmp_path / "x.root", 20, 1, "label_Tbl"))["tree"]
    assert len([name for name in tree.keys() if name != "n_part"]) == 41  # noqa: SIM118
    assert tree["label_QCD"].typename == "float"
    assert tree["label_Hbb"].typename == "bool"
    assert tree["label_Tbl"].typename == "int32_t"
    assert (tree["label_Tbl"].array(library="np") == 1).all()
    assert set(jetclass_jets.PROCESSES) == set(jetclass_jets.LABELS)


def test_jetclass_jets_are_finite():
    for label in jetclass_jets.LABELS:
        jets = jetclass_jets.jetclass_jets(50, 1, label)
        columns = [*jets.scalars.values(), *jets.lists["n_part"][1].values()]
        assert all(np.isfinite(column).all() for column in columns)
