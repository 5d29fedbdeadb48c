"""Configs as people have them in checkouts of B-Hive, and what earlier versions made of the shipped ones."""

from __future__ import annotations

import numpy as np
import pytest

from bhive_mltf import config
from bhive_mltf.config.former import FORMER_PROCESSES
from bhive_mltf.config.loader import own_folder
from bhive_mltf.config.settings import is_one_edit
from bhive_mltf.data.build.construct import check_parameters
from bhive_mltf.errors import ConfigError, UnknownKeyError
from bhive_mltf.testing.jets import write_btag
from tests.helpers.building import build

OFFLINE = (
    *("DeepJet_AK4", "offline_run3", "part_run3", "UParT_v0_run3"),
    *("mod_offline_run3", "part_run3_lt", "part_fp16_run3"),
)


def test_d01_blocks_of_cuts_without_processes(write, base):
    del base["processes"]
    loaded = config.load(write(base | {"TT": {"pt_min": 10, "pt_max": 1000}, "QCD": {"pt_min": 10}}))
    assert loaded.processes == ("default",)
    assert loaded.process_cuts["TT"] == config.ProcessCuts(pt_min=10, pt_max=1000)
    assert loaded.warnings == ()


def test_d01_only_blocks_of_cuts_are_taken_for_processes(write, base):
    del base["processes"]
    loaded = config.load(write(base | {"TT": {"pt_min": 10, "colour": "red"}, "empty": {}}))
    assert loaded.process_cuts == {}
    assert ["TT" in loaded.warnings[0], "empty" in loaded.warnings[1]] == [True, True]


@pytest.mark.parametrize("name", OFFLINE)
def test_d07_shipped_configs_of_upstreams_names_add_no_process(name):
    assert config.load(name).processes == ("default",)


def test_d07_any_file_name_is_taken(tmp_path):
    jets = write_btag(tmp_path / "ntuple_merged_0.root", 40, 1)
    dataset = build(config.load("offline_run3"), [str(jets)], tmp_path / "set")
    assert dataset.schema.processes == ("default",)
    assert set(dataset.read(0, len(dataset)).process) == {0}


@pytest.mark.parametrize("name", sorted(FORMER_PROCESSES))
def test_d07_what_the_former_shipped_config_made_is_recognised(name):
    loaded = config.load(name)
    former = loaded.model_copy(update={"processes": FORMER_PROCESSES[name]})
    found = config.as_recorded(loaded, former.dataset_digest)
    assert (found.processes, found.dataset_digest) == (former.processes, former.dataset_digest)
    assert config.as_recorded(loaded, loaded.dataset_digest) is loaded
    assert config.as_recorded(loaded, "0" * 64) is None


def test_d07_a_set_of_the_former_config_is_opened(tmp_path):
    from bhive_mltf.data.dataset import open_dataset

    loaded = config.load("offline_run3")
    former = loaded.model_copy(update={"processes": FORMER_PROCESSES["offline_run3"]})
    files = [str(write_btag(tmp_path / f"{name}.root", 40, 1, name)) for name in ("TT", "QCD")]
    made = build(former, files, tmp_path / "set")
    assert open_dataset(tmp_path / "set", loaded).manifest.digest == made.manifest.digest


CONDITIONS = [{"a": [1]}, {"b": [{">": 0}, 5]}, {"c": [0]}]


def test_d08_the_order_of_conditions_is_no_other_content(write, base):
    one = config.load(write(base | {"truths": {"isB": CONDITIONS, "isC": "isC"}}))
    other = [{"b": [5, {">": 0}, 5.0]}, *CONDITIONS[::-2]]
    two = config.load(write(base | {"truths": {"isB": other, "isC": "isC"}}))
    assert one.dataset_digest == two.dataset_digest
    different = config.load(write(base | {"truths": {"isB": CONDITIONS[:2], "isC": "isC"}}))
    assert different.dataset_digest != one.dataset_digest


def test_d08_digests_of_earlier_versions_are_recognised(write, base):
    loaded = config.load(write(base | {"truths": {"isB": CONDITIONS[::-1], "isC": "isC"}}))
    assert loaded.written_digest != loaded.dataset_digest
    found = config.as_recorded(loaded, loaded.written_digest)
    assert found.dataset_digest == loaded.written_digest
    assert config.as_recorded(found, loaded.dataset_digest).dataset_digest == loaded.dataset_digest
    again = config.Config.model_validate_json(found.model_dump_json())
    assert again.dataset_digest == loaded.written_digest


def test_d08_digests_of_configs_without_such_conditions_stay():
    for name in ("jet_class", "part_run3"):
        loaded = config.load(name)
        assert loaded.written_digest == loaded.dataset_digest


PRIVATE = [("ca_features", ["a"]), ("vtx_candidates", ["a"]), ("pt_min", 20), ("cpf_points", ["a"]), (True, 1)]


@pytest.mark.parametrize(("key", "value"), PRIVATE)
def test_d09_keys_that_nothing_reads_are_ignored_with_a_warning(write, base, key, value):
    path = write(base | {key: value})
    [said] = config.load(path).warnings
    assert f"key {key}: `{key}` is not a key of a config" in said
    assert ": it is ignored; nearest: " in said
    with pytest.raises(UnknownKeyError, match=f"`{key}` is not a key of a config"):
        config.load(path, strict=True)


def test_d09_the_warning_names_the_nearest_key(write, base):
    assert "nearest: n_vtx_candidates" in config.load(write(base | {"vtx_candidates": 3})).warnings[0]


def test_d09_a_cut_that_nothing_reads_is_ignored_too(write, base):
    loaded = config.load(write(base | {"TT": {"pt_min": 20, "label": "top quarks"}}))
    assert loaded.process_cuts["TT"] == config.ProcessCuts(pt_min=20)
    assert "key TT: `label` is not a cut of a process: it is ignored" in loaded.warnings[0]


def test_d09_cuts_of_a_process_that_is_not_listed_are_ignored(write, base):
    assert "`Wjets` is not a key of a config" in config.load(write(base | {"Wjets": {"pt_min": 2}})).warnings[0]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("bins_pt", "bin_pt", True),
        ("bins_pt", "bins_ptt", True),
        ("bins_pt", "bons_pt", True),
        ("bins_pt", "bisn_pt", True),
        ("bins_pt", "bins_tp", True),
        ("bins_pt", "xbins_pt", True),
        ("bins_pt", "bins_pt", False),
        ("bins_pt", "bns_p", False),
        ("bins_pt", "bisn_tp", False),
        ("bins_pt", "pt_bins", False),
        ("a", "", True),
        ("ab", "ba", True),
        ("ab", "cd", False),
    ],
)
def test_d09_one_edit(one, other, expected):
    assert is_one_edit(one, other) is is_one_edit(other, one) is expected


def test_d10_mod_offline_run3_is_upstreams():
    loaded = config.load("mod_offline_run3")
    assert {"isU", "isD"} < set(loaded.labels)
    assert "isUD" not in loaded.labels
    assert loaded.group("vtx").length == 5
    assert loaded.group("cpf").plain[:7] == tuple(
        f"Cpfcan_{part}" for part in ("pt", "eta", "phi", "px", "py", "pz", "e")
    )
    assert loaded.group("vtx").plain[:3] == ("sv_pt", "sv_eta", "sv_phi")


def test_d10_a_photon_has_no_mass():
    [mass] = config.load("mod_offline_run3").group("npf").custom
    values = {f"Npfcan_{part}": np.zeros(3, np.float32) for part in ("px", "py", "pz")}
    values |= {"Npfcan_e": np.array([2, 2, 2], np.float32), "Npfcan_isGamma": np.array([0, 1, 0], np.float32)}
    values["Npfcan_px"][2] = 2.0001
    np.testing.assert_array_equal(mass.parse().evaluate(values), [2, 0, 0])


def test_d04_a_float16_config_is_written_as_arrow_shards(write, base):
    del base["processes"]
    loaded = config.load(write(base | {"data_precision": "float16", "dataset": "LZ4Dataset"}))
    assert (loaded.dataset, loaded.data_precision) == ("ArrowDataset", "float16")
    assert "key data_precision: training sets are written as ArrowDataset" in loaded.warnings[0]
    check_parameters(loaded, 1000)


# Structure of the public configs of B-Hive: keys that each has beside the usual ones, and what becomes of it.
STRUCTURES = {
    "plain": ({}, 0),
    "cuts alone": ({"processes": None, "TT": {"pt_min": 10, "pt_max": 2000}}, 0),
    "stale vertices": ({"vtx_features": ["sv_pt"], "n_vtx_features": 5}, 1),
    "stale weights": ({"process-weights": {"TT": 2}}, 1),
    "pairs": ({"pair_candidates": ["pair_a"], "n_pair_candidates": 300}, 2),
    "points": ({"cpf_points": ["can_eta"], "vtx_points": ["sv_eta"]}, 2),
    "own keys": ({"pt_min": 600, "pt_max": 1000, "ca_features": ["a"], "subjet_features": ["b"]}, 4),
    "process twice": ({"processes": ["TT", "QCD", "TT"]}, 1),
    "float16": ({"data_precision": "float16"}, 1),
    "float16 as it was called": ({"processor": "LZ4FP16Processing", "dataset": "LZ4FP16Dataset"}, 3),
    "labels by conditions": ({"truths": {"isB": [{"isB": [1]}, {"x": [-1, 1]}], "isC": "isC"}}, 0),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_public_structures_load(write, base, case):
    changes, n_warnings = STRUCTURES[case]
    loaded = config.load(write({k: v for k, v in (base | changes).items() if v is not None}))
    assert len(loaded.warnings) == n_warnings, loaded.warnings


def test_candidates_without_any_default_are_upstreams(write, base):
    del base["n_cpf_candidates"]
    write({"processes": ["default"]}, "default.yml")
    loaded = config.load(write(base | {"vtx_features": ["sv_pt"], "lt_candidates": ["lt_pt"]}))
    assert [(group.name, group.length) for group in loaded.groups[1:]] == [("cpf", 50), ("vtx", 5), ("lt", 5)]


@pytest.mark.parametrize(
    "processor", ["PairedTaggerProcessor", "LZ4_PairedTaggerProcessor", "L1PFCandidateAndVertexProcessing"]
)
def test_configs_of_other_selections_are_refused_by_name(write, base, processor):
    with pytest.raises(ConfigError, match=f"there is no `{processor}` here; there are LZ4Processing"):
        config.load(write(base | {"processor": processor}))


def test_all_shipped_configs_load_strictly():
    for path in own_folder().glob("*.yml"):
        config.load(str(path), strict=True)
