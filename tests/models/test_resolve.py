from __future__ import annotations

import pytest

from bhive_mltf.config import load
from bhive_mltf.errors import ModelError
from bhive_mltf.interface import ModelInputs
from bhive_mltf.models import registry
from bhive_mltf.models.classes import JETCLASS, OFFLINE, OFFLINE_UD, resolve_classes
from bhive_mltf.models.resolve import GroupRequest, resolve_inputs


def without(config, group, **changes):
    """The config with one group changed."""
    groups = tuple(g.model_copy(update=changes) if g.name == group else g for g in config.groups)
    return config.model_copy(update={"groups": groups})


def resolve(config, *requests) -> ModelInputs:
    return resolve_inputs("M", config, JETCLASS if config.name == "jet_class" else OFFLINE_UD, requests, "longest")


def test_all_columns_in_the_config_order_by_default():
    config = load("DeepJet_AK4")
    group = resolve(config, GroupRequest("cpf")).group("cpf")
    assert group.columns == config.group("cpf").columns
    assert (group.length, group.four_vectors, group.kind) == (25, (), "")


def test_a_selection_keeps_its_order_and_a_shorter_length_cuts():
    columns = ("Cpfcan_ptrel", "Cpfcan_BtagPf_trackPPar")
    group = resolve(load("DeepJet_AK4"), GroupRequest("cpf", columns=columns, length=7)).group("cpf")
    assert group.columns == columns
    assert group.length == 7
    assert resolve(load("DeepJet_AK4"), GroupRequest("cpf", length=99)).group("cpf").length == 25


def test_a_column_may_have_several_names():
    request = GroupRequest("cpf", columns=(("Cpfcan_pT_rel", "Cpfcan_ptrel"),))
    assert resolve(load("DeepJet_AK4"), request).group("cpf").columns == ("Cpfcan_ptrel",)


def test_missing_columns_name_model_group_nearest_and_config():
    request = GroupRequest("cpf", columns=("Cpfcan_ptrell", "Cpfcan_quality"))
    message = (
        r"model M reads columns of the group 'cpf' that config 'DeepJet_AK4' does not have: "
        r"Cpfcan_ptrell \(nearest: Cpfcan_ptrel\); add"
    )
    with pytest.raises(ModelError, match=message):
        resolve(load("DeepJet_AK4"), request)


def test_many_missing_columns_make_a_short_message():
    with pytest.raises(ModelError, match=r"and 13 more; add") as error:
        registry.create(
            "ParticleTransformer_JetClass", without(load("jet_class"), "cpf", plain=("part_px",), custom=())
        )
    assert "part_logpt" in str(error.value)


def test_a_missing_group_is_an_error_unless_optional():
    config = load("hlt_run3")
    with pytest.raises(ModelError, match=r"needs the group 'npf', which config 'hlt_run3' .*it has: global, cpf, vtx"):
        registry.create("DeepJet", config)
    inputs = resolve_inputs("M", config, {}, (GroupRequest("npf", optional=True), GroupRequest("cpf")), "longest")
    assert [group.name for group in inputs.groups] == ["cpf"]
    with pytest.raises(KeyError):
        inputs.group("npf")


def test_w32_four_vectors_are_found_by_name_and_no_features():
    group = resolve(load("jet_class"), GroupRequest("cpf", four_vectors=True)).group("cpf")
    assert group.four_vectors == ("part_px", "part_py", "part_pz", "part_energy")
    assert group.kind == "pxpypze"
    assert len(group.columns) == 19
    assert not set(group.four_vectors) & set(group.columns)


def test_w32_a_selection_may_hold_columns_of_the_four_vector():
    request = GroupRequest("cpf", columns=("part_energy", "part_deta"), four_vectors=True)
    assert resolve(load("jet_class"), request).group("cpf").columns == ("part_energy", "part_deta")


def test_w32_without_four_vectors_the_error_shows_what_to_write():
    with pytest.raises(ModelError, match=r"four_vectors: \{cpf: \{kind: pxpypze, columns: \[PX, PY, PZ, ENERGY\]\}\}"):
        resolve(load("DeepJet_AK4"), GroupRequest("cpf", four_vectors=True))


def test_w32_an_ambiguous_config_is_refused_with_its_problem():
    problem = "config x, group cpf: several sets of columns could be the four-vectors: a or b"
    config = without(load("jet_class"), "cpf", four_vectors=None, four_vectors_problem=problem)
    with pytest.raises(ModelError, match=problem):
        registry.create("ParticleTransformer2_JetClass", config)


def test_w21_the_light_labels_are_resolved_both_ways():
    joined, split = load("offline_run3"), load("DeepJet_AK4")
    assert dict(registry.create("DeepJet", joined).inputs.classes)["uds"] == ("isUD", "isS")
    assert dict(registry.create("DeepJet", split).inputs.classes)["uds"] == ("isU", "isD", "isS")
    assert resolve_classes("M", OFFLINE, joined.labels, "c")["uds"] == ("isUD", "isS")
    assert resolve_classes("M", OFFLINE, split.labels, "c")["uds"] == ("isU", "isD", "isS")
    assert list(resolve_classes("M", OFFLINE, joined.labels, "c")) == list(OFFLINE)


def test_w21_a_config_with_both_spellings_uses_the_model_s_own():
    truths = [*load("DeepJet_AK4").labels, "isUD"]
    assert resolve_classes("M", OFFLINE_UD, truths, "c")["uds"] == ("isUD", "isS")
    assert resolve_classes("M", OFFLINE, truths, "c")["uds"] == ("isU", "isD", "isS")


def test_classes_that_match_no_label():
    message = (
        r"model M: its class 'g' is made of the truth labels isG, of which config 'c' does not have isG \(nearest: isS"
    )
    with pytest.raises(ModelError, match=message):
        resolve_classes("M", {"s": ("isS",), "g": ("isG",)}, ["isS", "isB"], "c")
