"""What multi-task taggers learn beside classes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bhive_mltf.errors import ModelError
from bhive_mltf.models import registry
from bhive_mltf.models.base import Outputs
from bhive_mltf.models.regression import bounded_ratio, hlt_targets, offline_targets
from tests.helpers.model_factory import jets, load, small

MULTI_TASK = [name for name in registry.names() if registry.entry(name).regression]


def test_which_models_are_multi_task():
    assert set(MULTI_TASK) == {"UParT_v0", "UDeepJetTransformerHLT", "UParticleNet_InProHLT"}


@pytest.mark.parametrize("name", MULTI_TASK)
def test_logits_and_regression_outputs(name):
    model = small(name)
    batch = jets(model, [3, 0, 2])
    output = model(batch)
    assert isinstance(output, Outputs)
    assert output.logits.shape == (3, 6)
    assert output.regression.shape == model.regression_targets(batch).shape == (3, len(model.regression))


def test_ratios_are_bounded_numbers():
    generated = torch.tensor([100.0, 10.0, 900.0, 0.0, math.nan, math.inf, 5.0])
    measured = torch.tensor([80.0, 100.0, 100.0, 100.0, 100.0, 100.0, 0.0])
    expected = [1.25, 0.3, 2.0, 0.3, 0.3, 2.0, 2.0]
    assert bounded_ratio(generated, measured).tolist() == pytest.approx(expected)
    assert bounded_ratio(torch.zeros(1), torch.zeros(1)).tolist() == pytest.approx([0.3])


def test_offline_targets_are_three_visible_and_one_of_all():
    assert offline_targets(torch.tensor([[100.0, 90.0, 110.0]])).tolist() == [pytest.approx([0.9, 0.9, 0.9, 1.1])]


def test_a_tau_is_held_against_its_visible_decay():
    columns = torch.tensor([[100.0, 90.0, 50.0], [100.0, 90.0, 50.0]])
    assert hlt_targets(columns, torch.tensor([False, True])).flatten().tolist() == pytest.approx([0.9, 0.5])


@pytest.mark.parametrize("name", ["UDeepJetTransformerHLT", "UParticleNet_InProHLT"])
def test_the_class_of_a_jet_says_whether_it_is_a_tau(name):
    model = small(name)
    batch = jets(model, [1] * 7)
    columns = batch.groups["global"].columns
    assert columns == ("jet_pt", "jet_genmatch_pt", "jet_genmatch_lep_vis_pt")
    features = torch.tensor([100.0, 90.0, 50.0]).expand(7, 1, 3)
    batch = replace(
        batch,
        target=torch.tensor([0, 1, 2, 3, 4, 5, -1]),
        groups={**batch.groups, "global": replace(batch.groups["global"], features=features)},
    )
    expected = [0.9, 0.9, 0.9, 0.9, 0.5, 0.5, 0.9]
    assert model.regression_targets(batch).flatten().tolist() == pytest.approx(expected)


def test_momenta_of_the_particle_jet_are_no_input_of_the_network():
    model = small("UParT_v0").eval()
    batch = jets(model, [3, 2])
    group = batch.groups["global"]
    other = replace(batch, groups={**batch.groups, "global": replace(group, features=group.features + 5)})
    for one, two in zip(model(batch), model(other), strict=True):
        assert torch.equal(one, two)


def test_a_config_without_them_is_refused():
    with pytest.raises(ModelError, match=r"UParT_v0 reads columns of the group 'global' .* gen_pt .*nearest"):
        registry.create("UParT_v0", load("part_run3"))
