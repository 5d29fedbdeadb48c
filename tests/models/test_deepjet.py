from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from bhive_mltf.errors import ModelError
from bhive_mltf.models.deepjet import Branch, Layer
from tests.helpers.model_factory import jets, small


def test_branch_is_convolutions_and_a_reversed_lstm():
    """Against torch's Conv1d and a plain loop over steps, in evaluation mode."""
    torch.manual_seed(0)
    branch = Branch(5, (7, 6, 4), 3, 0.1, 0.6).double().eval()
    for norm in (m for m in branch.modules() if isinstance(m, nn.BatchNorm1d)):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    features = torch.randn(2, 9, 5, dtype=torch.float64)

    def convolve(linear, x):
        return nn.functional.conv1d(x, linear.weight[..., None], linear.bias).relu()

    x = branch.norm_in(features.transpose(1, 2))
    for layer in branch.layers:
        x = layer.norm(convolve(layer.linear, x))
    x = convolve(branch.last, x)
    state = None
    for step in reversed(range(9)):
        out, state = branch.lstm(x[:, None, :, step], state)
    torch.testing.assert_close(branch(features), branch.norm_out(out[:, 0]))


def test_constants_of_the_layers():
    layer = Layer(3, 4, 0.1, 0.6)
    assert (layer.norm.eps, layer.norm.momentum, layer.dropout.p) == (1e-3, 0.6, 0.1)
    model = small("DeepJet")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.6)}
    assert len(norms) == 1 + 3 + (3 + 2 + 3) + 3 + 9
    assert [layer.linear.out_features for layer in model.dense] == [200] + 8 * [100]


def test_w35_the_momentum_that_was_meant_can_be_had():
    model = small("DeepJet", batch_norm_momentum=0.4)
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm1d)} == {0.4}


def test_w35_networks_without_lstm_have_torch_s_momentum():
    """0.6 is kept where B-Hive's weights were made with it; everywhere else the new batch counts a tenth."""
    for name in ("ParticleTransformer", "DeepJetTransformer", "ParticleNet_InPro", "GlobalDeepJetTransformerHLT"):
        assert {m.momentum for m in small(name).modules() if isinstance(m, nn.BatchNorm1d)} == {0.1}


def test_w37_modjet_reads_momenta_by_name():
    groups = {group.name: group for group in small("MoDJet").inputs.groups}
    assert {name: len(group.columns) for name, group in groups.items()} == {
        "global": 18,
        "cpf": 21,
        "npf": 11,
        "vtx": 15,
    }
    assert groups["global"].columns[:5] == ("jet_px", "jet_py", "jet_pz", "jet_energy", "jet_mass")


def test_statistics_see_padded_candidates():
    model = small("DeepJet").train()
    batch = jets(model, [3, 2])
    model(batch)
    cpf = batch.groups["cpf"].features
    assert cpf.shape[1] == 25
    torch.testing.assert_close(model.branches["cpf"].norm_in.running_mean, 0.6 * cpf.mean((0, 1)))


def test_other_padding_than_configured_is_refused():
    model = small("DeepJetHLT")
    batch = jets(model, [3, 2])
    group = batch.groups["cpf"]
    short = replace(group, features=group.features[:, :4], mask=group.mask[:, :4])
    with pytest.raises(
        ModelError, match="must see 50 candidates per jet in the group 'cpf', padding included, the batch has 4"
    ):
        model(replace(batch, groups={**batch.groups, "cpf": short}))
