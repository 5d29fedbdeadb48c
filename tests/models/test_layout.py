"""The layout of a batch: every candidate once, pairs, groups; and nothing of it waits for a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bhive_mltf.models import layout
from bhive_mltf.models.layout import GROUPS, MULTIPLE, group_shapes, lay_out

CPU = torch.device("cpu")
MASK = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])


def made(counts, lengths=None, pairs="none", **options):
    counts = np.atleast_2d(np.array(counts, np.int64))
    lengths = lengths or [max(int(own.max(initial=0)), 1) for own in counts]
    return lay_out(counts, lengths, CPU, pairs, **options)


@pytest.mark.parametrize("packed", [True, False])
def test_every_candidate_has_one_row_and_there_is_little_else(packed):
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 60, 200)
    found = made(counts, [64], packed=packed)
    values = torch.arange(counts.sum() if packed else 200 * 64)[:, None]
    rows = found.rows(values)[:, 0]
    places = found.real[0].long()
    assert torch.equal(rows[found.slot], torch.arange(counts.sum()) if packed else places)
    assert places.tolist() == [jet * 64 + i for jet, n in enumerate(counts) for i in range(n)]
    assert len(rows) < 1.15 * counts.sum()
    assert len(found.groups) <= GROUPS
    assert all(group.length % MULTIPLE == 0 for group in found.groups)
    sizes = torch.cat([(~group.hidden).sum(1) for group in found.groups])
    assert sizes.tolist() == sorted(counts.tolist()) == found.counts.tolist() == found.n.tolist()
    assert torch.equal(found.jets(sizes[:, None])[:, 0], torch.from_numpy(counts))


def test_kinds_stand_one_behind_the_other_in_the_row_of_a_jet():
    counts = np.array([[2, 0, 3], [1, 4, 0]])
    found = made(counts, [3, 5])
    names = [f"{kind}{jet}{i}" for kind in range(2) for jet in range(3) for i in range(counts[kind, jet])]
    rows = found.rows(torch.arange(len(names))[:, None])
    of_jets = {}
    jets = [jet for group in found.split(rows) for jet in group[..., 0].tolist()]
    for place, jet in enumerate(found.order.tolist()):
        of_jets[jet] = [names[i] for i in jets[place][: found.n[place]]]
    assert of_jets == {0: ["000", "001", "100"], 1: ["110", "111", "112", "113"], 2: ["020", "021", "022"]}
    assert found.jet.tolist() == [0, 0, 2, 2, 2, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("pairs", ["all", "others"])
def test_pairs_and_their_symmetric_bias(pairs):
    counts, own = [3, 2, 0, 3, 1], 0 if pairs == "all" else 1
    found = made(counts, pairs=pairs)
    expected = sum(n * (n + 1 - 2 * own) // 2 for n in counts)
    assert found.first.shape == found.second.shape == (expected,)
    jets = {int(slot) // 8 for slot in found.first} if len(found.groups) == 1 else None
    assert jets is None or len(jets) == sum(n > own for n in counts)
    values = (1.0 + torch.arange(2.0 * expected)).view(2, -1).requires_grad_()
    biases = found.pair_biases(values)
    for bias, group in zip(biases, found.groups, strict=True):
        real = ~group.hidden
        both = real[:, :, None] & real[:, None]
        is_pair = both if pairs == "all" else both & ~torch.eye(group.length, dtype=torch.bool)
        assert torch.equal(bias[0] > 0, is_pair)
        first = torch.arange(group.length) == 0
        assert torch.equal(bias[0].isneginf(), (group.hidden & ~first)[:, None].expand_as(bias[0]))
        visible = bias.masked_fill(bias.isneginf(), 0)
        assert torch.equal(visible[:, both], visible.transpose(2, 3)[:, both])
    sum(bias.masked_fill(bias.isneginf(), 0).sum() for bias in biases).backward()
    assert torch.equal(values.grad, torch.where(found.first == found.second, 1.0, 2.0).expand(2, -1))


def test_gradients_of_rows_are_those_of_the_candidates():
    found = made([[2, 5, 0], [3, 0, 0]])
    values = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(found.source), 4, dtype=torch.float64)
    (found.rows(values) * weight).sum().backward()
    assert torch.equal(values.grad, weight[found.slot])


@pytest.mark.parametrize("counts", [[], [0], [0, 0]])
def test_a_batch_of_nothing_has_rows_and_gradients(counts):
    found = made(counts, [4], "all")
    assert found.n_jets == len(counts)
    values = torch.zeros(0, 3, requires_grad=True)
    rows = found.rows(values)
    assert rows.shape == (8 * max(len(counts), 1), 3)
    found.jets(rows[::MULTIPLE]).sum().backward()
    assert values.grad is not None


def test_groups_are_joined_where_it_costs_least():
    assert group_shapes(np.array([8, 8, 16, 64, 72]), 2) == [(3, 16), (2, 72)]
    assert group_shapes(np.array([8]), 4) == [(1, 8)]
    assert sum(n for n, _ in group_shapes(np.sort(np.arange(1000) % 17 * 8 + 8), 3)) == 1000


@pytest.mark.parametrize(("n_jets", "groups"), [(0, 1), (64, 1), (256, 2), (512, 4), (1024, 8), (5000, 8)])
def test_small_batches_have_few_groups_on_a_gpu(n_jets, groups):
    assert layout._groups_on_gpu(n_jets) == groups
