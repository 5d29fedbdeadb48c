"""The first transformer and DeepJetTransformer: layers, statistics, pooling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bhive_mltf.models.deepjet_transformer import AttentionPooling, ResidualDense
from bhive_mltf.models.layout import lay_out
from bhive_mltf.models.part.v1 import ClassBlock1, ConvolutionEmbedding, ParticleBlock1
from bhive_mltf.models.part.v2 import PairEmbedding2
from tests.helpers.model_factory import jets, logits_of, small


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_layer_list():
    assert count(ParticleBlock1(128, 8, 0.1)) == 199_296
    assert count(ClassBlock1(128, 8, 0.1)) == 199_296 + 256
    assert count(PairEmbedding2(8, 48, nn.GELU())) == 3_184
    assert count(ConvolutionEmbedding(16, 128, 0.1, nn.ReLU())) == 130 * 16 + 17_152 + 512
    assert count(ResidualDense(128, 0.1)) + count(AttentionPooling(128)) == 128 * 128 + 128 + 3 * 256 + 129
    assert {
        norm.eps for norm in small("ParticleTransformer").embeddings.modules() if isinstance(norm, nn.BatchNorm1d)
    } == {1e-3}


def test_a_block_adds_feed_forward_to_the_normalised_sum():
    torch.manual_seed(0)
    block = ParticleBlock1(8, 2, 0.0).double()
    tokens, bias = torch.randn(2, 8, 8, dtype=torch.float64), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    layout = lay_out(np.array([[8, 8]]), [8], torch.device("cpu"), packed=False)
    normed = block.norm(tokens)
    attention = block.attention
    q, k, v = (part.view(2, 8, 2, 4).transpose(1, 2) for part in attention.project_in(normed).chunk(3, -1))
    weights = (q @ k.transpose(-1, -2) / 2 + bias).softmax(-1)
    summed = block.norm_sum(tokens + attention.project_out((weights @ v).transpose(1, 2).flatten(2)))
    forward = block.feed_forward
    hidden = forward.norm(nn.functional.gelu(forward.expand(summed)))
    got = block(tokens.flatten(0, 1), [bias.transpose(0, 1)], layout)
    torch.testing.assert_close(got.view(2, 8, 8), summed + forward.contract(hidden))


@pytest.mark.parametrize("name", ["ParticleTransformer", "DeepJetTransformer", "ParticleNet_InPro"])
def test_w34_statistics_are_those_of_real_candidates(name):
    model = small(name).train()
    batch = jets(model, [3, 2, 0])
    model(batch)
    group = batch.groups["cpf"]
    expected = group.features[group.mask].mean(0)
    torch.testing.assert_close(model.embeddings["cpf"].norm_in.running_mean, 0.1 * expected)


def test_w34_pooling_of_a_jet_without_candidates_is_of_zeros():
    torch.manual_seed(0)
    pooling = AttentionPooling(4).eval()
    layout = lay_out(np.array([[2, 0]]), [3], torch.device("cpu"))
    tokens = torch.randn(2, 4, requires_grad=True)
    rows = layout.rows(tokens)
    rows.retain_grad()
    pooled = pooling(rows, layout)
    weights = pooling.score(tokens).softmax(0)
    torch.testing.assert_close(pooled[0], pooling.norm(nn.functional.gelu((weights * tokens).sum(0, keepdim=True)))[0])
    torch.testing.assert_close(pooled[1], pooling.norm(torch.zeros(1, 4))[0])
    pooled.sum().backward()
    assert rows.grad.isfinite().all()
    # the jet without candidates stands first
    assert not rows.grad[:8].any()


@pytest.mark.parametrize("name", ["GlobalParticleTransformerHLT", "GlobalDeepJetTransformerHLT"])
def test_the_momentum_of_the_jet_is_an_input_of_the_global_ones(name):
    model = small(name).eval()
    batch = jets(model, [3, 2])
    group = batch.groups["global"]
    assert group.columns == ("jet_pt", "jet_eta", "jet_phi", "jet_energy")
    other = replace(batch, groups={**batch.groups, "global": replace(group, features=group.features + 1)})
    assert not torch.equal(logits_of(model(batch)), logits_of(model(other)))


def test_w32_the_kind_of_four_vectors_does_not_matter_to_part1():
    """Upstream's v1 wants (pt, eta, phi, E) and its UParT (px, py, pz, E) in the same place."""
    for name in ("ParticleTransformer", "UParT_v0"):
        model = small(name).eval()
        batch = jets(model, [5, 3])
        groups = {
            key: replace(group, four_vectors=model.momenta(batch, key)) if group.four_vectors is not None else group
            for key, group in batch.groups.items()
        }
        expected = logits_of(model(batch))
        kinds = tuple(replace(group, kind="pxpypze" if group.kind else "") for group in model.inputs.groups)
        model.inputs = replace(model.inputs, groups=kinds)
        torch.testing.assert_close(logits_of(model(replace(batch, groups=groups))), expected)
