"""Layers that several taggers share.

Axes: B jets, N candidates, T queries, C keys, H heads, D = E / H, E width, M rows of any kind; S jets of a group of the
layout, L slots of each, R rows of all groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bhive_mltf.models.layout import Layout, hiding

# cuDNN, torch's first choice for half types on Hopper, has no gradient of the bias.
_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_RANDOM_BITS = 16
RMS_EPS = 1e-6

P = ParamSpec("P")
Result = TypeVar("Result")
Own = TypeVar("Own", bound="RowWise")


class RowWise(nn.Module):
    """A module with methods that work on rows one by one, and are what `torch.compile` is for; see `row_wise`.

    compile_mode : of torch.compile; None: not compiled. Not part of a stored or copied module.
    """

    compile_mode: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name != "compile_mode"}


def row_wise(method: Callable[Concatenate[Own, P], Result]) -> Callable[Concatenate[Own, P], Result]:
    """Decorates a method of a `RowWise` module without operators whose sizes depend on values: it may be compiled."""

    @wraps(method)
    def call(self: Own, *args: P.args, **kwargs: P.kwargs) -> Result:
        if self.compile_mode is None or torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        compiled: Callable[Concatenate[Own, P], Result] = _compiled(method, self.compile_mode)
        return compiled(self, *args, **kwargs)

    return call  # type: ignore[return-value]


@lru_cache(None)
def _compiled(method: Callable[..., Any], mode: str) -> Callable[..., Any]:
    # dynamic: batches have as many rows as their jets have candidates
    return torch.compile(method, mode=mode, dynamic=True)


def batch_norm(norm: nn.Module, rows: Tensor) -> Tensor:
    """A batch norm over rows [M,F], also where a training step has fewer than two rows.

    Such rows have no variance: they are normalised with the running statistics, which stay as they are. A norm of
    several ranks decides by itself, since other ranks may have rows.
    """
    if type(norm) is nn.BatchNorm1d and norm.training and rows.shape[0] < 2:
        return F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    normed: Tensor = norm(rows)
    return normed


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm that keeps the type of its weight under autocast, where torch's falls to a slow path."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=RMS_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[...,E] -> [...,E]."""
        return super().forward(x.to(self.weight.dtype))


def dropped(x: Tensor, rate: float) -> tuple[Tensor, float]:
    """Dropout of any shape, and the factor that is left to the caller, who may have a weight to put it in.

    On a CPU with 16 random bits an element, the rate rounded to 2^-16: torch's own numbers take longer there than a
    matrix product.
    """
    if rate == 0:
        return x, 1.0
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate), 1.0
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = bits.view(torch.int16)[: x.numel()].view(x.shape).to(x.dtype)
    bound = round(rate * 2**_RANDOM_BITS) - 2 ** (_RANDOM_BITS - 1) - 0.5
    # zero where the number is below the bound, the same for the gradient: one pass, and no mask is kept
    return torch.ops.aten.threshold_backward(x, numbers, bound), 1 / (1 - rate)


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

    @property
    def rate(self) -> float:
        """Dropout of the attention weights."""
        return self.dropout if self.training else 0.0

    def forward(self, memory: Tensor, bias: Tensor, query: Tensor | None = None) -> Tensor:
        """Attention of padded `query` [B,T,E] to `memory` [B,C,E], or of `memory` to itself.

        bias : [B,H or 1,T or 1,C], -inf where a key is hidden.
        Returns [B,T,E].
        """
        if query is None:
            q, k, v = (self._heads(part) for part in self.project_in(memory).chunk(3, dim=-1))
        else:
            q = self._heads(self.queries(query))
            k, v = (self._heads(part) for part in self.keys_and_values(memory).chunk(2, dim=-1))
        with sdpa_kernel(_KERNELS):
            attended = attend(q, k, v, bias, self.rate)
        joined: Tensor = self.project_out(attended.transpose(1, 2).flatten(2))
        return joined

    def queries(self, tokens: Tensor) -> Tensor:
        """[...,E] -> [...,E]."""
        width = tokens.shape[-1]
        return F.linear(tokens, self.project_in.weight[:width], self.project_in.bias[:width])

    def keys_and_values(self, tokens: Tensor) -> Tensor:
        """[...,E] -> [...,2E]."""
        width = tokens.shape[-1]
        return F.linear(tokens, self.project_in.weight[width:], self.project_in.bias[width:])

    def among_rows(self, projected: Tensor, biases: Sequence[Tensor], layout: Layout) -> Tensor:
        """Attention of each row to those of its jet, before `project_out`.

        projected : [R,3E], what `project_in` gives. biases : of each group, [H or 1,S,L or 1,L].
        Returns [R,E].
        """
        found = []
        # once for all groups: entering it takes as long as the launch of a kernel
        with sdpa_kernel(_KERNELS):
            for own, bias in zip(layout.split(projected), biases, strict=True):
                n_jets, length, _ = own.shape
                q, k, v = own.view(n_jets, length, 3, self.num_heads, -1).permute(2, 3, 0, 1, 4)
                found.append(_attend_by_head(q, k, v, bias.to(q.dtype), self.rate))
        return torch.cat(found)

    def to_rows(self, query: Tensor, own: Tensor, rows: Tensor, layout: Layout) -> Tensor:
        """Attention of a token of each jet to itself and the rows of its jet, before `project_out`.

        query : [B,E]. own : keys and values of the tokens [B,2E]; rows : those of the rows [R,2E].
        Returns [B,E].
        """
        sizes, found = [group.jets for group in layout.groups], []
        parts = zip(torch.split(query, sizes), torch.split(own, sizes), layout.split(rows), layout.groups, strict=True)
        with sdpa_kernel(_KERNELS):
            for q, first, others, group in parts:
                n_jets = len(q)
                seen = torch.cat((first[:, None], others), 1).view(n_jets, others.shape[1] + 1, 2, self.num_heads, -1)
                k, v = seen.permute(2, 0, 3, 1, 4)
                bias = F.pad(hiding(group.hidden, q.dtype), (1, 0))[:, None, None]
                found.append(attend(q.view(n_jets, self.num_heads, 1, -1), k, v, bias, self.rate).reshape(n_jets, -1))
        return torch.cat(found)

    def _heads(self, tokens: Tensor) -> Tensor:
        n_jets, length, width = tokens.shape
        return tokens.reshape(n_jets, length, self.num_heads, width // self.num_heads).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rate: float) -> Tensor:
    """Attention [B,H,T,D] of queries [B,H,T,D] to keys and values [B,H,C,D], scores plus bias [B,H or 1,T or 1,C].

    To be called where the kernels are `_KERNELS`.
    """
    if q.numel() == 0:
        # the fused kernel gives the bias no gradient here, and DDP would wait for it
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + bias
        empty: Tensor = scores.softmax(-1) @ v
        return empty
    return F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype), rate)


def _attend_by_head(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rate: float) -> Tensor:
    """Rows [S*L,E] of queries, keys and values [H,S,L,D] and a bias [H or 1,S,L or 1,L]."""
    heads, n_jets, length, depth = q.shape
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        first = [part.transpose(0, 1) for part in (q, k, v, bias)]
        out = attend(first[0], first[1], first[2], first[3], rate).transpose(1, 2)
        return out.reshape(n_jets * length, heads * depth)
    # torch's own takes twice as long here
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    scores = torch.baddbmm(bias.expand(heads, -1, -1, -1).flatten(0, 1), q, k.transpose(1, 2), alpha=depth**-0.5)
    weights, factor = dropped(scores.softmax(-1), rate)
    out = (weights @ (v * factor if factor != 1 else v)).view(heads, n_jets * length, depth)
    return out.transpose(0, 1).reshape(n_jets * length, heads * depth)
