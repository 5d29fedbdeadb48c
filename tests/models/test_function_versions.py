"""Models whose function changed: what they compute today, and what trained weights keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bhive_mltf.errors import ModelError
from bhive_mltf.models import particle_net, registry
from bhive_mltf.models.deepjet_transformer import AttentionPooling, ResidualDense
from bhive_mltf.models.layout import lay_out
from bhive_mltf.models.particle_net import nearest_neighbours
from tests.helpers.model_factory import CONFIGS, SMALL, jets, load, logits_of, small

CHANGED = sorted(name for name in registry.names() if registry.entry(name).function > 1)


def test_d02_pooling_is_a_weighted_mean_gelu_norm_and_dropout():
    torch.manual_seed(1)
    pooling = AttentionPooling(8, 0.1).double().eval()
    layout = lay_out(np.array([[8, 8, 8]]), [8], torch.device("cpu"), packed=False)
    rows = torch.randn(24, 8, dtype=torch.float64)
    tokens = rows.view(3, 8, 8)
    weights = (tokens @ pooling.score.weight[0] + pooling.score.bias).softmax(1)
    expected = pooling.norm(F.gelu((weights[..., None] * tokens).sum(1)))
    torch.testing.assert_close(pooling(rows, layout), expected)
    dropped = pooling.train()(rows, layout)
    assert 0 < (dropped == 0).double().mean() < 0.5


def test_d02_the_dense_layer_has_gelu():
    torch.manual_seed(1)
    dense = ResidualDense(8, 0.0).double().eval()
    jet = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(dense(jet), dense.norm_out(jet + dense.norm(F.gelu(dense.linear(jet)))))


def test_d02_version_1_has_relu_and_no_dropout_after_pooling():
    pooling, dense = AttentionPooling(8, 0.1, 1), ResidualDense(8, 0.1, 1)
    assert [type(part.activation) for part in (pooling, dense)] == [nn.ReLU, nn.ReLU]
    assert pooling.dropout.p == 0


@pytest.mark.parametrize("name", CHANGED)
def test_d02_versions_share_weights_and_differ_in_logits(name):
    one, two = small(name, function_version=1).eval(), small(name).eval()
    assert (one.function_version, two.function_version) == (1, registry.entry(name).function)
    two.load_state_dict(one.state_dict())
    batch = jets(one, [3, 5, 1])
    assert not torch.equal(logits_of(one(batch)), logits_of(two(batch)))


def test_d02_particle_net_embeds_with_dropout_and_upstreams_epsilon():
    model = small("ParticleNet_InPro", dropout=0.25)
    norms = [part for part in model.embeddings.modules() if isinstance(part, nn.BatchNorm1d)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert {embedding.dropout.p for embedding in model.embeddings.values()} == {0.25}
    former = small("ParticleNet_InPro", dropout=0.25, function_version=1)
    assert former.embeddings["cpf"].dropout.p == 0
    assert former.embeddings["cpf"].norm_in.eps == 1e-5


@pytest.mark.parametrize("version", [1, 2])
def test_d02_first_neighbours_of_particle_net(monkeypatch, version):
    seen = []

    def spy(values, *rest):
        seen.append(values)
        return nearest_neighbours(values, *rest)

    monkeypatch.setattr(particle_net, "nearest_neighbours", spy)
    model = small("ParticleNet_InProHLT", function_version=version).eval()
    nn.init.uniform_(model.norm_in.running_var, 2, 4)
    tokens = []
    for embedding in model.embeddings.values():
        embedding.register_forward_hook(lambda *arguments: tokens.append(arguments[2]))
    model(jets(model, [3, 5]))
    expected = torch.cat(tokens)
    assert torch.equal(seen[0], expected if version == 2 else model.norm_in(expected))


def test_d02_a_version_that_does_not_exist():
    config = load(CONFIGS["DeepJetTransformer"])
    with pytest.raises(ModelError, match=r"version 3 of its function is asked for, this package has 1 to 2: take"):
        registry.create("DeepJetTransformer", config, function_version=3)
    with pytest.raises(ModelError, match=r"model DeepJet: version 2 .* has 1 to 1"):
        registry.create("DeepJet", load("DeepJet_AK4"), function_version=2)


def test_d02_the_version_is_no_size_of_the_model():
    assert "function_version" not in registry.defaults("DeepJetTransformer")


PADDED = ["ParticleTransformer", "ParticleTransformerHLT", "UParT_v0", "GlobalParticleTransformerHLT"]
FULL = 100


@pytest.mark.parametrize("name", PADDED)
def test_d03_without_padding_both_functions_are_equal(name):
    hidden, upstream = small(name), small(name, padding_keys="upstream")
    assert upstream.inputs.padding == "configured"
    for mode in (True, False):
        pair = [model.double().train(mode) for model in (hidden, upstream)]
        one, two = (logits_of(model(jets(model, [FULL] * 4))) for model in pair)
        torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


def reference(model, features, momenta, mask):
    """Class tokens of B-Hive's first transformer, from torch's own attention and one pair after the other."""
    tokens = torch.cat([embed(x.flatten(0, 1)).view(*x.shape[:2], -1) for embed, x in features], 1)
    n_jets, length = mask.shape
    pairs = torch.zeros(n_jets, length, length, 4, dtype=momenta.dtype)
    p, energy = momenta[..., :3], momenta[..., 3]
    pt = p[..., :2].norm(dim=-1)
    rapidity = torch.atanh((p[..., 2] / energy.clamp(min=1e-20)).clamp(-1 + 1e-12, 1 - 1e-12))
    phi = torch.atan2(p[..., 1], p[..., 0])
    for i in range(length):
        for j in range(i):
            d_phi = (phi[:, i] - phi[:, j] + torch.pi) % (2 * torch.pi) - torch.pi
            delta = ((rapidity[:, i] - rapidity[:, j]) ** 2 + d_phi**2).sqrt()
            softer, total = torch.minimum(pt[:, i], pt[:, j]), momenta[:, i] + momenta[:, j]
            mass2 = total[:, 3] ** 2 - total[:, :3].square().sum(-1)
            found = [softer * delta, softer / (pt[:, i] + pt[:, j]).clamp(min=1e-8), delta, mass2]
            values = torch.stack([x.clamp(min=1e-8).log1p() for x in found], -1)
            pairs[:, i, j] = values * (mask[:, i] & mask[:, j])[:, None]
    i, j = torch.tril_indices(length, length, -1)
    values = pairs[:, i, j].transpose(1, 2)
    embedding = model.pair_embedding
    for norm, linear in zip(embedding.norms, embedding.linears, strict=True):
        values = F.conv1d(F.gelu(norm(values)), linear.weight[..., None], linear.bias)
    bias = torch.zeros(n_jets, values.shape[1], length, length, dtype=values.dtype)
    bias[:, :, i, j] = values
    bias[:, :, j, i] = values
    bias = bias + (~mask)[:, None, None, :].double()  # what adding a mask of booleans comes to
    for block in model.blocks:
        tokens = after(block, tokens, attention(block, block.norm(tokens), None, bias.flatten(0, 1), None))
    token = model.class_token.expand(n_jets, 1, -1)
    hidden = torch.cat((torch.zeros(n_jets, 1, dtype=torch.bool), ~mask), 1)
    for block in model.class_blocks:
        memory = block.norm_memory(torch.cat((token, tokens), 1))
        token = after(block, token, attention(block, memory, block.norm_query(token), None, hidden))
    return token[:, 0]


def attention(block, memory, query, bias, hidden):
    own = block.attention
    theirs = nn.MultiheadAttention(memory.shape[-1], own.num_heads, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": own.project_in.weight,
            "in_proj_bias": own.project_in.bias,
            "out_proj.weight": own.project_out.weight,
            "out_proj.bias": own.project_out.bias,
        }
    )
    query = memory if query is None else query
    return theirs(query, memory, memory, attn_mask=bias, key_padding_mask=hidden, need_weights=False)[0]


def after(block, tokens, attended):
    tokens = block.norm_sum(tokens + attended)
    forward = block.feed_forward
    return tokens + forward.contract(forward.norm(F.gelu(forward.expand(tokens))))


@pytest.mark.parametrize("training", [True, False])
def test_d03_padded_jets_are_computed_as_upstream_does(training):
    torch.manual_seed(3)
    model = small("ParticleTransformerHLT", padding_keys="upstream", dropout=0.0).double().train(training)
    for norm in [part for part in model.modules() if isinstance(part, nn.BatchNorm1d)]:
        nn.init.uniform_(norm.running_var, 0.5, 2)
    batch = jets(model, [2, 7, 1])
    names = list(model.embeddings)
    features = [(model.embeddings[name], model.features(batch, name)) for name in names]
    momenta = torch.cat([model.momenta(batch, name) for name in names], 1)
    mask = torch.cat([batch.groups[name].mask for name in names], 1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model.head(model.norm(reference(model, features, momenta, mask)))
    model.load_state_dict(state)
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=1e-8)


def test_d03_padding_makes_a_difference():
    hidden, upstream = small("ParticleTransformer").eval(), small("ParticleTransformer", padding_keys="upstream").eval()
    one, two = (model(jets(model, [2, 7, 1])) for model in (hidden, upstream))
    assert (one - two).abs().max() > 1e-4


def test_d03_gradients_and_a_jet_without_candidates_are_finite():
    model = small("ParticleTransformer", padding_keys="upstream").train()
    model(jets(model, [0, 3])).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_d03_another_word_is_refused():
    with pytest.raises(ModelError, match=r"padding_keys is 'shown'; give one of hidden, upstream"):
        registry.create("ParticleTransformer", load("part_run3"), **SMALL["ParticleTransformer"], padding_keys="shown")
