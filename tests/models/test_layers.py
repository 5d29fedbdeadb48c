from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bhive_mltf.models.layers import Attention, batch_norm, dropped
from bhive_mltf.models.layout import lay_out
from tests.helpers.padded_part import PairIndex, key_bias, spread_pairs


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


@pytest.mark.parametrize("bias_of", ["pairs", "keys"])
def test_attention_among_rows_is_that_of_padded_jets(bias_of):
    torch.manual_seed(0)
    attention = Attention(12, 3, 0.0).double()
    counts = np.array([[3, 17, 1, 9, 16]])
    layout = lay_out(counts, [17], torch.device("cpu"), "all", packed=False)
    tokens = torch.randn(5, 17, 12, dtype=torch.float64)
    hidden = torch.arange(17)[None] >= torch.tensor(counts[0])[:, None]
    if bias_of == "pairs":
        values = torch.randn(3, len(layout.first), dtype=torch.float64)
        pairs = PairIndex.of(~hidden)
        biases, bias = layout.pair_biases(_by_jet(values, layout)), spread_pairs(values.t(), pairs, 5, 17)
    else:
        biases, bias = layout.key_biases(torch.float64), torch.zeros(5, 1, 1, 17, dtype=torch.float64)
    expected = attention(tokens, bias + key_bias(~hidden, torch.float64))
    rows = layout.rows(tokens.flatten(0, 1))
    got = attention.project_out(attention.among_rows(attention.project_in(rows), biases, layout))
    real = layout.source.new_zeros(len(got), dtype=torch.bool).index_fill(0, layout.slot.long(), True)
    torch.testing.assert_close(got[layout.slot], expected[~hidden])
    assert int(real.sum()) == counts.sum()


def _by_jet(values, layout):
    """Values of pairs in the order of the batch in that of the layout."""
    n_pairs = [n * (n + 1) // 2 for n in layout.counts[layout.place].tolist()]
    parts = values.split(n_pairs, 1)
    return torch.cat([parts[jet] for jet in layout.order], 1)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_attention_over_nothing_still_has_gradients(shape):
    attention = Attention(8, 2, 0.1)
    tokens = torch.zeros(*shape, 8)
    bias = torch.zeros(shape[0], 2, shape[1], shape[1], requires_grad=True)
    attention(tokens, bias).sum().backward()
    assert bias.grad is not None
    assert all(p.grad is not None for p in attention.parameters())


def test_batch_norm_without_variance_uses_running_statistics():
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.8])
def test_dropout_drops_its_rate_and_leaves_the_others(rate, dtype):
    torch.manual_seed(0)
    values = torch.ones(1_000_003, dtype=dtype, requires_grad=True)
    kept, factor = dropped(values, rate)
    assert set(kept.tolist()) == {0.0, 1.0}
    assert factor == pytest.approx(1 / (1 - rate))
    assert abs(kept.double().mean() - (1 - rate)) < 5 * (rate * (1 - rate) / 1e6) ** 0.5
    # neighbours do not know of each other
    assert abs(torch.corrcoef(torch.stack((kept[:-1], kept[1:])).double())[0, 1]) < 5e-3
    kept.sum().backward()
    assert torch.equal(values.grad, kept.detach())


def test_dropout_follows_torch_s_seed():
    def draw(seed):
        torch.manual_seed(seed)
        return dropped(torch.ones(100), 0.5)[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_dropout_of_rate_zero_is_the_input():
    values = torch.ones(3)
    assert dropped(values, 0.0) == (values, 1.0)
