from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bhive_mltf.models.layers import Attention, PairIndex, batch_norm, key_bias, spread_pairs, visible_keys

MASK = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])


def test_pairs_of_real_candidates_only():
    pairs = PairIndex.of(MASK, with_self=True)
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [
        (0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 3), (5, 3), (5, 5),
    ]  # fmt: skip
    assert len(PairIndex.of(MASK, with_self=False).first) == 4


@pytest.mark.parametrize("with_self", [True, False])
def test_spread_is_symmetric_and_each_pair_has_its_gradient(with_self):
    pairs = PairIndex.of(MASK, with_self)
    values = (1.0 + torch.arange(2.0 * len(pairs.first))).view(-1, 2).requires_grad_()
    bias = spread_pairs(values, pairs, 3, 3)
    assert bias.shape == (3, 2, 3, 3)
    assert torch.equal(bias, bias.transpose(2, 3))
    both = MASK[:, :, None] & MASK[:, None, :]
    if not with_self:
        both = both & ~torch.eye(3, dtype=torch.bool)
    assert torch.equal(bias[:, 0] != 0, both)
    bias.sum().backward()
    expected = torch.where(pairs.first == pairs.second, 1.0, 2.0)
    assert torch.equal(values.grad, expected[:, None].expand(-1, 2))


def test_keys_of_an_empty_jet_stay_visible_once():
    assert visible_keys(MASK).tolist() == [[True] * 3, [True, False, True], [True, False, False]]
    assert visible_keys(torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)
    assert key_bias(MASK, torch.float64)[1, 0, 0].tolist() == [0, float("-inf"), 0]


@pytest.mark.parametrize("cross", [False, True])
def test_attention_is_torch_s_multi_head_attention(cross):
    torch.manual_seed(0)
    ours, torch_s = Attention(12, 3, 0.0).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    nn.init.normal_(ours.project_in.bias)
    torch_s.in_proj_weight.data = ours.project_in.weight.data
    torch_s.in_proj_bias.data = ours.project_in.bias.data
    torch_s.out_proj.load_state_dict(ours.project_out.state_dict())
    memory = torch.randn(2, 5, 12, dtype=torch.float64)
    query = torch.randn(2, 1, 12, dtype=torch.float64) if cross else memory
    bias = torch.randn(2, 3, query.shape[1], 5, dtype=torch.float64)
    expected, _ = torch_s(query, memory, memory, attn_mask=bias.flatten(0, 1))
    torch.testing.assert_close(ours(memory, bias, query if cross else None), expected)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_attention_over_nothing_still_has_gradients(shape):
    attention = Attention(8, 2, 0.1)
    tokens = torch.zeros(*shape, 8)
    bias = torch.zeros(shape[0], 2, shape[1], shape[1], requires_grad=True)
    attention(tokens, bias).sum().backward()
    assert bias.grad is not None
    assert all(p.grad is not None for p in attention.parameters())


def test_batch_norm_without_a_variance_uses_the_running_statistics():
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    row = torch.tensor([[3.0, 5.0]])
    torch.testing.assert_close(batch_norm(norm, row), torch.tensor([[1.0, 2.0]]))
    assert norm.running_mean.tolist() == [1.0, 1.0]
    rows = torch.randn(6, 2)
    torch.testing.assert_close(batch_norm(norm, rows), F.batch_norm(rows, None, None, training=True))


def test_a_synchronised_batch_norm_is_always_asked():
    class Synchronised(nn.BatchNorm1d):
        def forward(self, input):
            return input + 100

    assert batch_norm(Synchronised(2), torch.zeros(1, 2)).tolist() == [[100.0, 100.0]]
