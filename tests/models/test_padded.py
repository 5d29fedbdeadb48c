"""ParT on rows is the padded one: logits, gradients, statistics; on several ranks too."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bhive_mltf.interface import GroupBatch
from bhive_mltf.models.part.network import PartNetwork
from bhive_mltf.ranks.batchnorm import synchronise_batch_norms
from tests.helpers.model_factory import jets, small
from tests.helpers.padded_part import (
    PairIndex,
    key_bias,
    logits_of_tagger,
    padded_logits,
    spread_pairs,
    visible_keys,
)
from tests.helpers.threads import as_ranks

COUNTS = ([5, 1, 9, 3, 9], [1], [2], [1, 1], [0, 4, 2], [0, 0], [], [128, 1, 0, 2, 77, 50], [16] * 3)
SIZES = {"embed_dims": (8, 12, 8), "pair_embed_dims": (6, 5), "num_layers": 2, "num_cls_layers": 2, "num_heads": 2}
# of dropout, for its mean
DRAWS = 300
MASK = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])


def network(**options):
    torch.manual_seed(0)
    made = PartNetwork(4, 3, **{**SIZES, "dropout": 0.0, **options}).double()
    for value in made.parameters():
        value.data += 0.1 * torch.randn_like(value)
    return made


def inputs(counts, length=None):
    torch.manual_seed(1)
    length = max([*counts, 1]) if length is None else length
    mask = torch.arange(length) < torch.tensor(counts, dtype=torch.int64)[:, None]
    p3 = torch.randn(len(counts), length, 3, dtype=torch.float64)
    momenta = torch.cat((p3, (p3.square().sum(-1, keepdim=True) + 0.02).sqrt()), -1)
    return torch.randn(len(counts), length, 4, dtype=torch.float64) * mask[..., None], momenta, mask


def on_rows(model, features, momenta, mask):
    return model(features, momenta, mask.sum(1).numpy())


def results(forward, model, arguments):
    logits = forward(model, *arguments)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return logits.detach(), grads, dict(model.named_buffers())


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("options", [{}, {"pair_embed_dims": (), "final_pair_activation": False}])
@pytest.mark.parametrize(("counts", "length"), [*((c, None) for c in COUNTS), ([7, 7], 20), ([3, 5], 128), ([0, 0], 0)])
def test_rows_are_padded_jets(counts, length, options, train):
    model, arguments = network(**options).train(train), inputs(counts, length)
    expected = results(padded_logits, copy.deepcopy(model), arguments)
    torch.testing.assert_close(results(on_rows, model, arguments), expected, rtol=1e-10, atol=1e-12)


def test_candidates_in_any_places_are_counted_first():
    features, momenta, mask = inputs([5, 0, 2, 7])
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    features, momenta, mask = features[:, order], momenta[:, order], mask[:, order]
    group = GroupBatch(features, mask, (), momenta).counted()
    assert group.counts.tolist() == [5, 0, 2, 7]
    assert group.counted() is group
    model = network()
    got = model(group.features, group.four_vectors, group.counts)
    torch.testing.assert_close(got, padded_logits(model, features, momenta, mask), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("counted", [True, False])
def test_the_tagger_s_padded_form_is_the_same_function(counted):
    model = small("ParticleTransformer_JetClass").double().eval()
    batch = jets(model, [3, 0, 12, 1])
    batch = model.counted(batch) if counted else batch
    torch.testing.assert_close(model(batch), logits_of_tagger(model, batch), rtol=1e-10, atol=1e-12)


def test_inputs_have_the_same_gradients():
    """Attacks move them."""
    features, momenta, mask = inputs([5, 1, 9, 3])
    found = []
    for forward in (on_rows, padded_logits):
        changed = features.clone().requires_grad_()
        forward(network(), changed, momenta, mask).square().sum().backward()
        found.append(changed.grad)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rate", [0.4, pytest.param(0.1, marks=pytest.mark.long)])
def test_dropout_has_the_same_mean_as_the_padded_one(rate):
    """Its numbers differ; the mean of many draws is that of torch's own dropout."""
    arguments = inputs([5, 1, 9, 3])
    model = network(dropout=rate)
    with torch.no_grad():
        means = []
        for forward in (on_rows, padded_logits):
            torch.manual_seed(0)
            # running statistics change, and nothing depends on them here
            own = copy.deepcopy(model)
            draws = torch.stack([forward(own, *arguments) for _ in range(DRAWS)])
            means.append((draws.mean(0), draws.std(0) / DRAWS**0.5))
    (first, of_first), (second, of_second) = means
    assert ((first - second).abs() < 5 * (of_first.square() + of_second.square()).sqrt()).all()
    assert (of_first > 0).all()


@pytest.mark.parametrize("shares", [(3, 2), (4, 1), (5, 0), (2, 0, 3)])
@pytest.mark.parametrize("train", [True, False])
def test_ranks_with_unequal_shares_are_one(shares, train, monkeypatch):
    """Norms of the global batch on several ranks: logits, sums of gradients, running statistics."""
    features, momenta, mask = inputs([5, 1, 9, 3, 9])
    weight = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)

    def pass_of(model, arguments, own):
        logits = on_rows(model, *arguments)
        (logits * own).sum().backward()
        return logits.detach(), {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())

    expected = pass_of(network().train(train), (features, momenta, mask), weight)
    models = [network().train(train) for _ in shares]
    sent, reduce, gather = [], dist.all_reduce, dist.all_gather
    monkeypatch.setattr(dist, "all_reduce", lambda *a, **k: (sent.append(a[0].dtype), reduce(*a, **k)))
    monkeypatch.setattr(dist, "all_gather", lambda *a, **k: (sent.append(a[1].dtype), gather(*a, **k)))
    places = [slice(sum(shares[:rank]), sum(shares[: rank + 1])) for rank in range(len(shares))]

    def rank_pass(group, rank):
        model, own = synchronise_batch_norms(models[rank], group), places[rank]
        return pass_of(model, (features[own], momenta[own], mask[own]), weight[own])

    found = as_ranks(len(shares), rank_pass)
    torch.testing.assert_close(torch.cat([logits for logits, *_ in found]), expected[0], rtol=1e-10, atol=1e-12)
    for name, grad in expected[1].items():
        torch.testing.assert_close(sum(grads[name] for _, grads, _ in found), grad, rtol=1e-9, atol=1e-11)
    for *_, buffers in found:
        torch.testing.assert_close(buffers, expected[2], rtol=1e-10, atol=1e-12)
    norms = 1 + len(models[0].pair_embedding.norms)
    # inputs need no gradients: their two norms send nothing back
    assert len(sent) == (len(shares) * (2 * norms - 2) if train else 0)
    assert set(sent) <= {torch.float64}


def test_pairs_of_real_candidates_only():
    pairs = PairIndex.of(MASK)
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [
        (0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 3), (5, 3), (5, 5),
    ]  # fmt: skip


def test_spread_is_symmetric_and_each_pair_has_its_gradient():
    pairs = PairIndex.of(MASK)
    values = (1.0 + torch.arange(2.0 * len(pairs.first))).view(-1, 2).requires_grad_()
    bias = spread_pairs(values, pairs, 3, 3)
    assert bias.shape == (3, 2, 3, 3)
    assert torch.equal(bias, bias.transpose(2, 3))
    assert torch.equal(bias[:, 0] != 0, MASK[:, :, None] & MASK[:, None, :])
    bias.sum().backward()
    expected = torch.where(pairs.first == pairs.second, 1.0, 2.0)
    assert torch.equal(values.grad, expected[:, None].expand(-1, 2))


def test_keys_of_an_empty_jet_stay_visible_once():
    assert visible_keys(MASK).tolist() == [[True] * 3, [True, False, True], [True, False, False]]
    assert visible_keys(torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)
    assert key_bias(MASK, torch.float64)[1, 0, 0].tolist() == [0, float("-inf"), 0]


def test_counts_are_integers_of_any_kind():
    features, momenta, mask = inputs([2, 3])
    model = network().eval()
    expected = on_rows(model, features, momenta, mask)
    assert torch.equal(model(features, momenta, [2, 3]), expected)
    assert torch.equal(model(features, momenta, np.array([2, 3], np.int32)), expected)
