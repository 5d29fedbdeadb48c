"""The packed network is the padded one: logits, gradients, running statistics; and its parts are what they say."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from bhive_mltf.models.cpu_kernels import moments
from bhive_mltf.models.cpu_kernels.fused import Affine, add_normed, after_norm, feed_forward, norm_linear, scaled
from bhive_mltf.models.cpu_kernels.fused_attention import group_attention, spread_to_groups
from bhive_mltf.models.cpu_kernels.masks import Dropout
from bhive_mltf.models.cpu_kernels.packing import PackedPairs, Packing
from bhive_mltf.models.part import network
from bhive_mltf.models.part.network import PartNetwork
from bhive_mltf.ranks.batchnorm import synchronise_batch_norms
from tests.training.threads import as_ranks

COUNTS = ([5, 1, 9, 3, 9], [1], [1, 1], [0, 4, 2], [0, 0], [])


def make_network(**options):
    torch.manual_seed(0)
    sizes = {"embed_dims": (8, 12, 8), "pair_embed_dims": (6, 5), "num_layers": 2, "num_cls_layers": 2, "num_heads": 2}
    made = PartNetwork(4, 3, **{**sizes, "dropout": 0.0, **options}).double()
    for value in made.parameters():
        value.data += 0.1 * torch.randn_like(value)
    return made


def inputs(counts, length=None, scattered=False):
    torch.manual_seed(1)
    length = max([*counts, 1]) if length is None else length
    mask = torch.arange(length) < torch.tensor(counts, dtype=torch.int64)[:, None]
    if scattered:
        mask = mask[:, torch.randperm(length)]
    p3 = torch.randn(len(counts), length, 3, dtype=torch.float64)
    momenta = torch.cat((p3, (p3.square().sum(-1, keepdim=True) + 0.02).sqrt()), -1)
    return torch.randn(len(counts), length, 4, dtype=torch.float64) * mask[..., None], momenta, mask


def results(model, arguments, monkeypatch, packed):
    monkeypatch.setattr(network, "can_pack", lambda *_: packed)
    model.zero_grad()
    logits = model(*arguments)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    return logits.detach(), grads, {name: b.clone() for name, b in model.named_buffers()}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("scattered", [True, False])
@pytest.mark.parametrize("options", [{}, {"pair_embed_dims": (), "final_pair_activation": False}])
@pytest.mark.parametrize("counts", COUNTS)
def test_packed_is_padded(counts, options, scattered, train, monkeypatch):
    arguments = inputs(counts, scattered=scattered)
    padded = results(make_network(**options).train(train), arguments, monkeypatch, packed=False)
    packed = results(make_network(**options).train(train), arguments, monkeypatch, packed=True)
    torch.testing.assert_close(packed, padded, rtol=1e-9, atol=1e-11)


def test_no_slots_at_all(monkeypatch):
    arguments = inputs([0, 0], length=0)
    torch.testing.assert_close(
        results(make_network(), arguments, monkeypatch, packed=True),
        results(make_network(), arguments, monkeypatch, packed=False),
    )


def test_groups_hold_every_candidate_once_and_little_else():
    torch.manual_seed(0)
    counts = torch.randint(1, 60, (200,))
    mask = (torch.arange(64) < counts[:, None])[:, torch.randperm(64)]
    packing = Packing.of(mask, rows_per_group=384)
    real = torch.cat([group.real.flatten() for group in packing.groups])
    assert sorted(packing.source[real].tolist()) == mask.flatten().nonzero().flatten().tolist()
    assert len(packing.source) < 1.1 * counts.sum()
    assert all(group.n_jets * group.length <= 384 for group in packing.groups)
    rows, hidden = packing.slots()
    own = packing.source[rows] // 64
    assert (own[~hidden] == torch.arange(200)[:, None].expand_as(own)[~hidden]).all()
    assert torch.equal((~hidden).sum(1), counts)


def test_a_jet_larger_than_a_group_is_a_group():
    packing = Packing.of(torch.ones(3, 10, dtype=torch.bool), rows_per_group=5)
    assert [(group.n_jets, group.length) for group in packing.groups] == [(1, 10)] * 3


def test_spread_is_symmetric_and_each_pair_has_its_gradient():
    packing = Packing.of(torch.arange(3) < torch.tensor([3, 2, 3])[:, None], rows_per_group=6)
    pairs = PackedPairs.of(packing, with_self=True)
    values = torch.arange(1.0, 1 + 2 * len(pairs.first)).view(2, -1).requires_grad_()
    biases = spread_to_groups(values, pairs.groups, packing.groups)
    visible = [bias.masked_fill(bias == float("-inf"), 0) for bias in biases]
    assert all(torch.equal(bias, bias.transpose(1, 2)) for bias in visible[1:])
    sum(bias.sum() for bias in visible).backward()
    assert torch.equal(values.grad, torch.where(pairs.first == pairs.second, 1.0, 2.0).expand(2, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.8])
def test_dropout_drops_its_rate_and_leaves_the_others(rate, dtype):
    torch.manual_seed(0)
    dropout = Dropout(rate, dtype)
    values = torch.ones(1_000_003, dtype=dtype)
    drawn = dropout.draw(values)
    kept = dropout.kept(values, drawn)
    assert set(kept.tolist()) == {0.0, 1.0}
    assert abs(kept.double().mean() - (1 - rate)) < 5 * (rate * (1 - rate) / 1e6) ** 0.5
    assert torch.equal(dropout.keep_where(values, drawn), kept)
    # neighbours do not know of each other
    assert abs(torch.corrcoef(torch.stack((kept[:-1], kept[1:])))[0, 1]) < 5e-3


def test_dropout_follows_torch_s_seed():
    def draw(seed):
        torch.manual_seed(seed)
        dropout = Dropout(0.5, torch.float32)
        return dropout.kept(torch.ones(100), dropout.draw(torch.ones(100)))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def numeric(function, *arguments):
    """Gradient check with the random numbers of dropout held."""

    def held(*values):
        torch.manual_seed(3)
        return function(*values)

    inputs = [value.double().requires_grad_() for value in arguments]
    assert torch.autograd.gradcheck(held, inputs)


PIECES = (slice(0, 3), slice(3, 5))


def drop():
    return Dropout(0.3, torch.float64)


def test_gradients_of_the_fused_parts_with_dropout():
    torch.manual_seed(0)
    x, wide, norm = torch.randn(5, 4), torch.randn(6, 4), nn.LayerNorm(4).double()
    numeric(lambda x, w, b: norm_linear(x, Affine(w, b), 1e-5, PIECES, gelu=True), x, wide, torch.randn(6))
    numeric(
        lambda x, a, w, b: add_normed(x, a, Affine(w, b), norm, drop(), PIECES),
        *(x, torch.randn(5, 4), torch.randn(4, 4), torch.randn(4)),
    )
    numeric(
        lambda x, w, b, v, c, r: feed_forward(x, Affine(w, b), Affine(v, c), r, (1e-5, 1e-5), drop(), PIECES),
        *(x, wide, torch.randn(6), torch.randn(4, 6), torch.randn(4), torch.randn(4)),
    )
    packing = Packing.of(torch.ones(2, 2, dtype=torch.bool), rows_per_group=2)
    numeric(
        lambda p, a, b: group_attention(p, [a, b], 2, drop(), packing.groups),
        *(torch.randn(4, 12), torch.randn(2, 2, 2), torch.randn(2, 2, 2)),
    )


def test_feed_forward_with_dropout_is_that_of_torch():
    """Where everything is dropped or kept by the same numbers, factors and epsilons agree."""
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64)
    first, last = nn.LayerNorm(4).double(), nn.LayerNorm(6, eps=0.1).double()
    expand, contract = nn.Linear(4, 6).double(), nn.Linear(6, 4).double()
    torch.manual_seed(3)
    got = feed_forward(
        *(x, after_norm(Affine(expand.weight, expand.bias), first)),
        *(
            after_norm(Affine(contract.weight, contract.bias), last),
            torch.ones(4).double(),
            (1e-5, 0.1),
            drop(),
            PIECES,
        ),
    )
    torch.manual_seed(3)
    dropout, expected = drop(), []
    for piece in PIECES:
        hidden = F.gelu(expand(first(x[piece])))
        hidden = last(dropout.kept(hidden, dropout.draw(hidden)) / 0.7)
        out = contract(hidden)
        expected.append(x[piece] + dropout.kept(out, dropout.draw(out)) / 0.7)
    torch.testing.assert_close(got, torch.cat(expected))
    assert scaled(Affine(torch.ones(2, 2), torch.ones(2)), 3.0).offset.tolist() == [3, 3]


@pytest.mark.parametrize("shares", [(3, 2), (4, 1), (5, 0), (2, 0, 3)])
@pytest.mark.parametrize("train", [True, False])
def test_ranks_with_unequal_shares_are_one(shares, train, monkeypatch):
    """Norms of the global batch, packed, on several ranks: outputs, sums of gradients, running statistics."""
    features, momenta, mask = inputs([5, 1, 9, 3, 9])
    weight = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)
    models = [make_network().train(train) for _ in shares]

    def pass_of(model, arguments, own):
        logits = model(*arguments)
        (logits * own).sum().backward()
        return logits.detach(), {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())

    expected = pass_of(make_network().train(train), (features, momenta, mask), weight)
    sent, gather, reduce = [], dist.all_gather, dist.all_reduce
    monkeypatch.setattr(dist, "all_gather", lambda *a, **k: (sent.append("forward"), gather(*a, **k)))
    monkeypatch.setattr(dist, "all_reduce", lambda *a, **k: (sent.append("backward"), reduce(*a, **k)))
    places = [slice(sum(shares[:rank]), sum(shares[: rank + 1])) for rank in range(len(shares))]

    def rank_pass(group, rank):
        model, own = synchronise_batch_norms(models[rank], torch.device("cpu"), group), places[rank]
        assert network.can_pack(model, features)
        return pass_of(model, (features[own], momenta[own], mask[own]), weight[own])

    results = as_ranks(len(shares), rank_pass)
    torch.testing.assert_close(torch.cat([logits for logits, *_ in results]), expected[0], rtol=1e-9, atol=1e-11)
    for name, grad in expected[1].items():
        torch.testing.assert_close(sum(grads[name] for _, grads, _ in results), grad, rtol=1e-9, atol=1e-11)
    for *_, buffers in results:
        torch.testing.assert_close(buffers, expected[2], rtol=1e-9, atol=1e-11)
    # the input, and each norm of pairs whose moments depend on weights
    assert len(sent) == (len(shares) * (1 + 2 * (len(models[0].pair_embedding.norms) - 2)) if train else 0)


def test_the_input_s_norm_keeps_its_digits_in_float32():
    """torch's batch norm of rows sums them one by one."""
    torch.manual_seed(0)
    rows = 5 + torch.rand(200_000, 3)
    mean, variance = moments.variances(rows)[1:]
    torch.testing.assert_close(mean, rows.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(variance, rows.double().var(0, unbiased=False), rtol=1e-12, atol=0)


def test_attacks_have_gradients_of_the_features(monkeypatch):
    features, momenta, mask = inputs([5, 1, 9, 3])
    found = []
    for packed in (True, False):
        monkeypatch.setattr(network, "can_pack", lambda *_, packed=packed: packed)
        changed = features.clone().requires_grad_()
        make_network()(changed, momenta, mask).square().sum().backward()
        found.append(changed.grad)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
