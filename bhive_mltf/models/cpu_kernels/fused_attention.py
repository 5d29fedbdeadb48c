"""Attention inside groups of jets of like multiplicity, with a bias on each pair and dropout of the weights.

Axes: R rows, E width, H heads, D = E / H, S jets of a group, L slots of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bhive_mltf.models.cpu_kernels import rows
from bhive_mltf.models.cpu_kernels.masks import Dropout
from bhive_mltf.models.cpu_kernels.packing import Group, GroupPairs
from bhive_mltf.models.cpu_kernels.products import matmul_precision


class _GroupAttention(torch.autograd.Function):
    # small products gain less by bfloat16 than the conversion to it takes
    @staticmethod
    @matmul_precision("highest")
    def forward(
        ctx: Any,  # noqa: ANN401
        projected: Tensor,
        num_heads: int,
        dropout: Dropout,
        groups: Sequence[Group],
        *biases: Tensor,
    ) -> Tensor:
        width = projected.shape[1] // 3
        out = projected.new_empty(len(projected), width)
        kept = []
        for group, bias in zip(groups, biases, strict=True):
            own = projected[group.rows]
            q, k, v = (_heads(own[:, part * width : (part + 1) * width], num_heads, group) for part in range(3))
            scores = torch.baddbmm(bias, q, k.transpose(1, 2))
            weights, dropped, drawn = rows.softmax_drop(scores, dropout)
            rows.from_heads((dropped @ v).view(num_heads, -1, v.shape[2]), out[group.rows])
            kept.append((q, k, v, weights, dropped, drawn))
        ctx.kept, ctx.groups, ctx.dropout = kept, groups, dropout
        ctx.shape = projected.shape
        return out

    @staticmethod
    @once_differentiable
    @matmul_precision("highest")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        d_projected = grad.new_empty(ctx.shape)
        width = grad.shape[1]
        d_biases = []
        for group, (q, k, v, weights, dropped, drawn) in zip(ctx.groups, ctx.kept, strict=True):
            num_heads, depth = len(q) // group.n_jets, q.shape[2]
            d_out = _heads(grad[group.rows], num_heads, group)
            d_v = dropped.transpose(1, 2) @ d_out
            d_scores = rows.back_softmax_drop(d_out @ v.transpose(1, 2), weights, ctx.dropout, drawn)
            own = d_projected[group.rows]
            for part, found in enumerate((d_scores @ k, d_scores.transpose(1, 2) @ q, d_v)):
                rows.from_heads(found.view(num_heads, -1, depth), own[:, part * width : (part + 1) * width])
            d_biases.append(d_scores)
        return d_projected, None, None, None, *d_biases


def _heads(values: Tensor, num_heads: int, group: Group) -> Tensor:
    """Rows [S*L,E] of a group as [H*S,L,D]."""
    return rows.to_heads(values, num_heads).view(-1, group.length, values.shape[1] // num_heads)


def group_attention(
    projected: Tensor, biases: Sequence[Tensor], num_heads: int, dropout: Dropout, groups: Sequence[Group]
) -> Tensor:
    """Attention of each jet's rows to each other.

    projected : [R,3E], queries, keys, values; the queries times D^-1/2, the values over the kept share of dropout.
    biases : of each group [H*S,L,L], -inf where a key is hidden.
    Returns [R,E].
    """
    out: Tensor = _GroupAttention.apply(projected, num_heads, dropout, groups, *biases)  # type: ignore[no-untyped-call]
    return out


class _SpreadPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, groups: Sequence[GroupPairs], shapes: Sequence[Group]) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.groups, ctx.shape = groups, values.shape
        ends = values.new_tensor([0.0, float("-inf")]).expand(len(values), 2)
        table = torch.cat((values, ends), 1)
        return tuple(
            table.index_select(1, pairs.spread).view(-1, group.length, group.length)
            for pairs, group in zip(groups, shapes, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        found = grads[0].new_empty(ctx.shape)
        for pairs, grad in zip(ctx.groups, grads, strict=True):
            flat = grad.reshape(ctx.shape[0], -1)
            # a self-pair has one place
            other = flat.index_select(1, pairs.upper).masked_fill_(pairs.upper == pairs.lower, 0)
            torch.add(flat.index_select(1, pairs.lower), other, out=found[:, pairs.pairs])
        return found, None, None


def spread_to_groups(values: Tensor, pairs: Sequence[GroupPairs], groups: Sequence[Group]) -> tuple[Tensor, ...]:
    """Values [H,P] of unordered pairs as the symmetric bias of each group [H*S,L,L].

    0 where two candidates are no pair, -inf where the key is hidden.
    """
    biases: tuple[Tensor, ...] = _SpreadPairs.apply(values, pairs, groups)  # type: ignore[no-untyped-call]
    return biases
