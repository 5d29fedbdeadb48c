"""The stack of batch norms, linear maps and GELUs over pairs, with statistics that come with the products.

A batch norm is a factor and an offset of each channel, so that it takes no pass of its own: its mean and variance are
found while the linear map before it is computed, in pieces that stay in the cache. The first linear map and the norms
around it are one linear map of the input, since the variance after it follows from the covariance of the input.

Axes: P pairs, K channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bhive_mltf.models.cpu_kernels import rows
from bhive_mltf.models.cpu_kernels.moments import Moments

ROWS = 1536
"""Pairs that one core works on at a time."""


def _pieces(n_rows: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, n_rows, ROWS))


class _Stage(torch.autograd.Function):
    """Factor and offset (or a linear map), GELU, linear map, moments of the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, offset: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        out = x.new_empty(len(x), len(weight))
        active = x.new_empty(len(x), weight.shape[1])
        total, deviation = x.new_zeros(len(weight), dtype=torch.float64), x.new_zeros(len(weight), dtype=torch.float64)
        first = x.new_zeros(len(weight))
        for piece in _pieces(len(x)):
            rows.line_gelu(*_enter(x[piece], factor, offset), active[piece])
            torch.mm(active[piece], weight.t(), out=out[piece])
            # squares around a number close to the mean lose no digits
            if piece.start == 0:
                first = out[piece].mean(0)
            rows.add_moments(out[piece], first, total, deviation)
        count = max(len(x), 1)
        shift = total / count
        mean = (first + shift).to(x.dtype)
        variance = (deviation / count - shift.square()).to(x.dtype)
        ctx.save_for_backward(x, factor, offset, weight, active, out, mean)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, d_mean: Tensor, d_variance: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, factor, offset, weight, active, out, mean = ctx.saved_tensors
        grad = grad.contiguous()
        count = max(len(x), 1)
        slope = d_variance * (2 / count)
        constant = d_mean / count - slope * mean
        d_x = torch.empty_like(x) if factor.dim() == 1 else None
        d_factor, d_offset, d_weight = torch.zeros_like(factor), torch.zeros_like(offset), torch.zeros_like(weight)
        for piece in _pieces(len(x)):
            d_out = rows.add_line(grad[piece], out[piece], slope, constant)
            d_weight.addmm_(d_out.t(), active[piece])
            d_enter = d_out @ weight
            if d_x is None:
                rows.back_line_gelu(d_enter, _enter(x[piece], factor, offset)[0], None, (d_offset, None), None)
                d_factor.addmm_(d_enter.t(), x[piece])
            else:
                rows.back_line_gelu(d_enter, x[piece], (factor, offset), (d_offset, d_factor), d_x[piece])
        return d_x, d_factor, d_offset, d_weight


def _enter(x: Tensor, factor: Tensor, offset: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What enters the GELU: rows, and a factor and an offset that are still to be applied."""
    return (x, factor, offset) if factor.dim() == 1 else (torch.addmm(offset, x, factor.t()), None, None)


def stage(x: Tensor, factor: Tensor, offset: Tensor, weight: Tensor) -> tuple[Tensor, Moments]:
    """Linear map `weight` [out,K] of GELU(factor * x + offset), with the moments of the result.

    x : [P,K]. factor : [K], or [K,in] as the linear map of an x [P,in] that needs no gradient. offset : [K].
    """
    out, mean, variance = _Stage.apply(x, factor, offset, weight)  # type: ignore[no-untyped-call]
    return out, Moments(len(x), mean, variance)
