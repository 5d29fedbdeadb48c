from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bhive_mltf.models import registry
from bhive_mltf.models.layout import lay_out
from bhive_mltf.models.particle_net import (
    EdgeConvolution,
    ParticleNetTagger,
    mean_by,
    n_neighbours,
    nearest_neighbours,
)
from tests.helpers.model_factory import jets, load, logits_of


def laid_out(counts):
    return lay_out(np.array([counts]), [max(counts)], torch.device("cpu"))


def pairs(edges):
    return set(zip(edges.centre.tolist(), edges.neighbour.tolist(), strict=True))


def test_the_nearest_others_of_the_same_jet():
    layout = laid_out([4, 2])
    rows = torch.tensor([[0.0], [1.0], [1.4], [9.0], [5.0], [5.1]])
    edges = nearest_neighbours(rows, layout, 2)
    assert pairs(edges) == {(0, 1), (0, 2), (1, 2), (1, 0), (2, 1), (2, 0), (3, 2), (3, 1), (4, 5), (5, 4)}
    assert n_neighbours(layout, 2).tolist() == [2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("k", [3, 4, 50])
def test_w36_a_jet_with_fewer_others_than_k_uses_all_of_them(k):
    layout = laid_out([4, 1, 0, 3])
    edges = nearest_neighbours(torch.randn(8, 5), layout, k)
    first = {(i, j) for i in range(4) for j in range(4) if i != j}
    assert pairs(edges) == first | {(i, j) for i in range(5, 8) for j in range(5, 8) if i != j}
    assert n_neighbours(layout, k).tolist() == [3, 3, 3, 3, 0, 2, 2, 2]


def test_w36_the_shipped_k_on_short_jets():
    model = registry.create("ParticleNet_InProHLT", load("hlt_run3"), embed_dim=8)
    assert isinstance(model, ParticleNetTagger)
    assert [convolution.k for convolution in model.convolutions] == [50, 50]
    logits = logits_of(model(jets(model, [1, 0, 30])))
    assert logits.isfinite().all()


def test_an_edge_convolution_by_hand():
    """Against a loop over candidates and neighbours, in evaluation mode."""
    torch.manual_seed(0)
    convolution = EdgeConvolution(3, (6, 5), 2).double().eval()
    for norm in (module for module in convolution.modules() if isinstance(module, nn.BatchNorm1d)):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    rows = torch.randn(5, 3, dtype=torch.float64)
    got = convolution(rows, laid_out([4, 1]), rows)
    for centre in range(5):
        others = [j for j in range(4) if j != centre] if centre < 4 else []
        others = sorted(others, key=lambda j: float((rows[j] - rows[centre]).square().sum()))[:2]
        mean = torch.zeros(5, dtype=torch.float64)
        if others:
            edges = torch.stack([torch.cat((rows[centre], rows[j] - rows[centre])) for j in others])
            for linear, norm in zip(convolution.linears, convolution.norms, strict=True):
                edges = norm(linear(edges)).relu()
            mean = edges.mean(0)
        shortcut = convolution.norm_shortcut(convolution.shortcut(rows[centre][None]))[0]
        torch.testing.assert_close(got[centre], (shortcut + mean).relu())


def test_no_shortcut_layer_where_widths_agree():
    assert isinstance(EdgeConvolution(6, (5, 6), 2).shortcut, nn.Identity)


def test_means_without_values_are_zero():
    values = torch.tensor([[1.0], [3.0], [5.0]])
    assert mean_by(torch.tensor([0, 0, 2]), values, torch.tensor([2, 0, 1])).tolist() == [[2.0], [0.0], [5.0]]
