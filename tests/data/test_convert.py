"""From branches to accepted jets."""

import numpy as np
import pytest
import uproot

from bhive_mltf.data.ntuples.root_reader import open_tree
from bhive_mltf.data.ntuples.selection import Converter
from bhive_mltf.errors import CorruptFileError, DataError, MissingBranchError, MissingTreeError
from bhive_mltf.testing.root_files import Jets, write_tree
from tests.helpers.building import hand_made, small_config, write_hand_made


def convert(config, path, chunk_jets=1000):
    converter = Converter(config)
    with open_tree(str(path), config.treename, config.branches) as tree:
        converter.check(tree)
        return [converter.convert(chunk, str(path), 1, 3) for chunk in tree.chunks(chunk_jets)]


def convert_one(config, path):
    [(block, accounting)] = convert(config, path)
    assert accounting.balanced
    return block, accounting


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path)


def test_known_jets(config, tmp_path):
    block, accounting = convert_one(config, write_hand_made(tmp_path / "TT.root", 6))
    assert (accounting.read, accounting.accepted) == (6, 6)
    assert block.jet_id.tolist() == [[3, i] for i in range(6)]
    assert block.process.tolist() == [1] * 6
    assert block.counts["cpf"].tolist() == [0, 1, 2, 3, 0, 1]
    assert block.counts["vtx"].tolist() == [0, 1, 2, 0, 1, 2]
    assert block.features["global"][:, 2].tolist() == [0, 1, 2, 3, 4, 5]
    assert block.features["cpf"][:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert block.features["cpf"][:, 1].tolist() == [-1, -2, -3, -4, -5, -6, -7]
    pt = np.repeat(20 + np.arange(6), block.counts["cpf"])
    np.testing.assert_allclose(block.features["cpf"][:, 2], np.log(np.arange(1, 8) / pt), rtol=1e-6)
    assert block.truth.tolist() == [[i % 3 == k for k in range(3)] for i in range(6)]
    np.testing.assert_array_equal(block.kinematics, block.features["global"][:, :2])


def test_only_needed_branches_are_read(config, tmp_path, monkeypatch):
    path = write_hand_made(tmp_path / "TT.root", 6, unused=np.zeros(6, np.float32))
    read = set()
    basket_array = uproot.AsDtype.basket_array

    def seen(self, data, offsets, basket, branch, *arguments):
        read.add(branch.name)
        return basket_array(self, data, offsets, basket, branch, *arguments)

    monkeypatch.setattr(uproot.AsDtype, "basket_array", seen)
    convert(config, path)
    assert read == set(config.branches)


@pytest.mark.parametrize("chunk_jets", [1, 2, 5, 6, 7])
def test_chunks_do_not_matter(config, tmp_path, chunk_jets):
    path = write_hand_made(tmp_path / "TT.root", 17)
    whole, _ = convert_one(config, path)
    pieces = [block for block, _ in convert(config, path, chunk_jets)]
    for name in whole.features:
        np.testing.assert_array_equal(np.concatenate([piece.features[name] for piece in pieces]), whole.features[name])
    np.testing.assert_array_equal(np.concatenate([piece.jet_id for piece in pieces]), whole.jet_id)


def test_first_candidates_are_kept(tmp_path):
    config = small_config(tmp_path, n_cpf_candidates=2)
    block, _ = convert_one(config, write_hand_made(tmp_path / "TT.root", 6))
    assert block.counts["cpf"].tolist() == [0, 1, 2, 2, 0, 1]
    assert block.features["cpf"][:, 0].tolist() == [1, 2, 3, 4, 5, 7]


def test_candidates_of_zeros_at_the_end_are_padding(tmp_path):
    config = small_config(tmp_path, cpf_custom_features=None)
    jets = hand_made(8)
    counts, values = jets.lists["n_Cpfcand"]
    # Jet 3 has candidates 3, 4, 5; jet 7 has 9, 10, 11 (counted over all jets).
    zero = np.isin(np.arange(12), [3, 5, 9, 10, 11])
    zeroed = {name: np.where(zero, 0, column).astype(np.float32) for name, column in values.items()}
    jets = Jets(jets.scalars, {**jets.lists, "n_Cpfcand": (counts, zeroed)})
    block, _ = convert_one(config, write_tree(tmp_path / "TT.root", config.treename, jets))
    assert block.counts["cpf"].tolist() == [0, 1, 2, 2, 0, 1, 2, 0]
    assert block.features["cpf"][3:5, 0].tolist() == [0, 5]


def test_acceptance_is_the_outer_edges(tmp_path):
    config = small_config(tmp_path, bins_pt=[20, 22, 24], bins_eta=[-2.5, 2.5])
    eta = np.array([0, 0, 0, 0, 0, 2.5, -2.5, -2.6, 0, 0], np.float32)
    pt = np.array([19.999, 20, 22, 23.999, 24, 21, 21, 21, 1000, 21], np.float32)
    truth = {"isC": np.ones(10, np.int32), "isB": np.zeros(10, np.int32), "isUD": np.zeros(10, np.int32)}
    truth["isC"][9] = 0
    block, accounting = convert_one(config, write_hand_made(tmp_path / "TT.root", 10, jet_pt=pt, jet_eta=eta, **truth))
    assert block.jet_id[:, 1].tolist() == [1, 2, 3, 6]
    assert accounting.rejected == {"outside_bins": 5, "no_truth": 1, "non_finite": 0}


def test_edges_are_compared_in_double_precision(tmp_path):
    config = small_config(tmp_path, bins_pt=[20.1, 100], bins_eta=[-2.5, 2.1])
    pt = np.nextafter(np.array([20.1, 20.1, 50, 50, 50, 50]), [0, 100, 100, 100, 100, 100])
    eta = np.array([0, 0, 2.1, np.nextafter(2.1, 0), 0, 0])
    block, _ = convert_one(config, write_hand_made(tmp_path / "TT.root", 6, jet_pt=pt, jet_eta=eta))
    assert block.jet_id[:, 1].tolist() == [1, 3, 4, 5]


def with_candidate(jets, number, value):
    counts, values = jets.lists["n_Cpfcand"]
    changed = values["Cpfcan_BtagPf_trackSip2dSig"].copy()
    changed[number] = value
    return Jets(jets.scalars, {**jets.lists, "n_Cpfcand": (counts, {**values, "Cpfcan_BtagPf_trackSip2dSig": changed})})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_w04_one_bad_number_drops_one_jet(config, tmp_path, value):
    jets = with_candidate(hand_made(40), 4, value)
    block, accounting = convert_one(config, write_tree(tmp_path / "TT.root", config.treename, jets))
    assert accounting.rejected == {"outside_bins": 0, "no_truth": 0, "non_finite": 1}
    assert 3 not in block.jet_id[:, 1]
    assert len(block) == 39
    assert int(block.counts["cpf"].sum()) == len(block.features["cpf"])


@pytest.mark.parametrize("branch", ["jet_pt", "jet_eta", "npv", "isB"])
def test_w04_global_features_and_labels_too(config, tmp_path, branch):
    values = hand_made(9).scalars[branch].astype(np.float32)
    values[4] = np.nan
    block, accounting = convert_one(config, write_hand_made(tmp_path / "TT.root", 9, **{branch: values}))
    assert accounting.rejected["non_finite"] == 1
    assert block.jet_id[:, 1].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


def test_a_bad_candidate_that_is_not_kept_does_no_harm(tmp_path):
    config = small_config(tmp_path, n_cpf_candidates=2)
    jets = with_candidate(hand_made(9), 5, np.nan)  # the third one of jet 3
    _, accounting = convert_one(config, write_tree(tmp_path / "TT.root", config.treename, jets))
    assert accounting.accepted == 9


def test_numbers_too_large_for_the_training_set(config, tmp_path):
    npv = np.array([1e300, 1, 2, 3, 4, 5])
    _, accounting = convert_one(config, write_hand_made(tmp_path / "TT.root", 6, npv=npv))
    assert accounting.rejected["non_finite"] == 1


def test_custom_features_see_numbers_of_the_jet(tmp_path):
    custom = [{"half": "Cpfcan_pt / 2"}, {"sum": "half + jet_pt + npv"}]
    config = small_config(tmp_path, cpf_custom_features=custom, global_custom_features=[{"cosh": "cosh(jet_eta)"}])
    block, _ = convert_one(config, write_hand_made(tmp_path / "TT.root", 6))
    jet = np.repeat(np.arange(6), block.counts["cpf"])
    np.testing.assert_allclose(block.features["cpf"][:, 3], np.arange(1, 8) / 2 + 20 + 2 * jet)
    np.testing.assert_allclose(block.features["global"][:, 3], np.cosh(block.kinematics[:, 1]), rtol=1e-6)


@pytest.mark.parametrize("kind", [np.bool_, np.int8, np.uint16, np.int64, np.float32, np.float64])
def test_scalars_of_any_type(config, tmp_path, kind):
    label = (np.arange(6) % 3 == 0).astype(kind)
    block, _ = convert_one(config, write_hand_made(tmp_path / "TT.root", 6, isB=label))
    assert block.truth[:, 0].tolist() == [True, False, False, True, False, False]


def test_no_candidates_at_all(config, tmp_path):
    block, _ = convert_one(config, write_hand_made(tmp_path / "TT.root", 1))
    assert block.features["cpf"].shape == (0, 3)


def test_file_without_jets(config, tmp_path):
    assert convert(config, write_hand_made(tmp_path / "TT.root", 0)) == []


def test_missing_branch(tmp_path):
    config = small_config(tmp_path, vtx_features=["sv_masss"])
    path = write_hand_made(tmp_path / "TT.root")
    message = "tree 'deepntuplizer/tree' of '.*TT.root' has no branch `sv_masss`; nearest: sv_mass"
    with pytest.raises(MissingBranchError, match=message):
        convert(config, path)


def test_missing_tree(tmp_path):
    config = small_config(tmp_path, treename="tree")
    with pytest.raises(MissingTreeError, match="has no tree 'tree'; its trees: deepntuplizer/tree"):
        convert(config, write_hand_made(tmp_path / "TT.root"))


def test_list_for_a_number(tmp_path):
    config = small_config(tmp_path, global_features=["jet_pt", "jet_eta", "sv_mass"], vtx_features=None)
    with pytest.raises(DataError, match="`sv_mass` of .* is a list per jet"):
        convert(config, write_hand_made(tmp_path / "TT.root"))


def test_number_for_a_list(tmp_path):
    config = small_config(tmp_path, vtx_features=["npv"])
    with pytest.raises(DataError, match="`npv` of .* is one number per jet"):
        convert(config, write_hand_made(tmp_path / "TT.root"))


def test_branches_of_one_group_must_agree(tmp_path):
    config = small_config(tmp_path, vtx_features=["sv_mass", "Cpfcan_pt"])
    with pytest.raises(DataError, match="`sv_mass` and `Cpfcan_pt` are in one group, but entry 3"):
        convert(config, write_hand_made(tmp_path / "TT.root"))


@pytest.mark.parametrize("size", [3, 200, 1000, -20])
def test_truncated_file(config, tmp_path, size):
    path = tmp_path / "TT.root"
    write_hand_made(path, 500)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptFileError, match="TT.root' .*--skip-bad-files"):
        convert(config, path)


def test_not_a_root_file(config, tmp_path):
    (tmp_path / "TT.root").write_text("jets " * 1000)
    with pytest.raises(CorruptFileError, match=r"TT.root' cannot be read as a ROOT file"):
        convert(config, tmp_path / "TT.root")


def test_damaged_basket(config, tmp_path):
    path = tmp_path / "TT.root"
    write_hand_made(path, 3000)
    with uproot.open(path) as file:
        branch = file[config.treename]["jet_pt"]
        start = branch.member("fBasketSeek")[0] + 100
    content = bytearray(path.read_bytes())
    content[start : start + 400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"TT.root' cannot be read"):
        convert(config, path)


def test_colon_in_a_path(config, tmp_path):
    convert(config, write_hand_made(tmp_path / "a:b" / "TT.root"))
