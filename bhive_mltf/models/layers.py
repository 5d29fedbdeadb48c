"""Layers that several taggers share.

Axes: B jets, N candidates, T queries, S keys, H heads, D = E / H, E width, M rows, P pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def batch_norm(norm: nn.Module, rows: Tensor) -> Tensor:
    """A batch norm over rows [M,F], also where a training step has fewer than two rows.

    Such rows have no variance: they are normalised with the running statistics, which stay as they are. A
    synchronised norm decides by itself, since other ranks may have rows.
    """
    if type(norm) is nn.BatchNorm1d and norm.training and rows.shape[0] < 2:
        return F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    normed: Tensor = norm(rows)
    return normed


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm that keeps the type of its weight under autocast, where torch's falls to a slow path."""

    def forward(self, x: Tensor) -> Tensor:
        """[...,E] -> [...,E]."""
        return super().forward(x.to(self.weight.dtype))


def visible_keys(mask: Tensor) -> Tensor:
    """Keys [B,N] that attention may look at: the real candidates, and the first one of a jet that has none.

    A softmax over nothing is NaN; what a jet without candidates computes here is masked later on.
    """
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return mask | (first & ~mask.any(1, keepdim=True))


def key_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention bias [B,1,1,S]: 0 for a visible key, -inf for another one."""
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill(~visible, float("-inf"))[:, None, None, :]


class Attention(nn.Module):
    """Multi-head attention with an additive bias on its scores.

    `project_in` holds queries, keys and values one after the other, as torch's own `in_proj_weight`.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.project_in = nn.Linear(embed_dim, 3 * embed_dim)
        self.project_out = nn.Linear(embed_dim, embed_dim)
        for weight in self.project_in.weight.chunk(3):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.project_in.bias)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, memory: Tensor, bias: Tensor, query: Tensor | None = None) -> Tensor:
        """Attention of `query` [B,T,E] to `memory` [B,S,E], or of `memory` to itself.

        bias : [B,H or 1,T or 1,S], -inf where a key is hidden.
        Returns [B,T,E].
        """
        if query is None:
            q, k, v = (self._heads(part) for part in self.project_in(memory).chunk(3, dim=-1))
        else:
            width = memory.shape[-1]
            weight, offset = self.project_in.weight, self.project_in.bias
            q = self._heads(F.linear(query, weight[:width], offset[:width]))
            k, v = (self._heads(part) for part in F.linear(memory, weight[width:], offset[width:]).chunk(2, dim=-1))
        attended = self._attend(q, k, v, bias.to(q.dtype))
        joined: Tensor = self.project_out(attended.transpose(1, 2).flatten(2))
        return joined

    def _heads(self, tokens: Tensor) -> Tensor:
        n_jets, length, width = tokens.shape
        return tokens.reshape(n_jets, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        if q.numel() == 0:
            # the fused kernel gives the bias no gradient here, and DDP would wait for it
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + bias
            empty: Tensor = scores.softmax(-1) @ v
            return empty
        return F.scaled_dot_product_attention(q, k, v, bias, self.dropout if self.training else 0.0)


class PairIndex(NamedTuple):
    """Unordered pairs of real candidates of the same jet; each int64 [P].

    first, second : candidates i and j as rows of the flattened [B*N]; i >= j inside the jet.
    lower, upper : places (i, j) and (j, i) in the flattened [B*N*N].
    """

    first: Tensor
    second: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def of(cls, mask: Tensor, with_self: bool) -> PairIndex:
        """All pairs of a mask [B,N]; `with_self`: each candidate with itself too."""
        length = mask.shape[1]
        both = (mask[:, :, None] & mask[:, None, :]).tril(0 if with_self else -1)
        jet, i, j = both.nonzero(as_tuple=True)
        first, second = jet * length + i, jet * length + j
        return cls(first, second, first * length + j, second * length + i)


def spread_pairs(values: Tensor, pairs: PairIndex, n_jets: int, length: int) -> Tensor:
    """Values [P,H] of unordered pairs as a symmetric attention bias [B,H,N,N], zero for all other pairs."""
    flat = values.new_zeros(n_jets * length * length, values.shape[-1])
    # out of place, and a self-pair is written twice with the same value: its gradient counts once
    flat = flat.index_copy(0, pairs.lower, values).index_copy(0, pairs.upper, values)
    return flat.view(n_jets, length, length, values.shape[-1]).permute(0, 3, 1, 2)
