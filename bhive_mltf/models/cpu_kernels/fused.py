# ruff: noqa: PLR0917 - a step of autograd takes its tensors one by one
"""Parts of a transformer block, each as one step of autograd that goes through the rows in pieces.

A piece fits the cache of a core, so that what the parts do to it one after the other does not travel to memory and
back; the products add their weight gradients up in place. Norms have no weight here: it is folded into the next linear
map, as is the factor of dropout, which changes nothing but the rounding.

Axes: R rows, E width, X expanded width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bhive_mltf.models.cpu_kernels import rows
from bhive_mltf.models.cpu_kernels.masks import Dropout
from bhive_mltf.models.cpu_kernels.rows import normed as normed_of
from bhive_mltf.models.cpu_kernels.rows import through_norm

aten = torch.ops.aten
Pieces = Sequence[slice]


class Affine(NamedTuple):
    """A linear map: weight [out,in] and offset [out]."""

    weight: Tensor
    offset: Tensor


def after_norm(linear: Affine, norm: nn.LayerNorm) -> Affine:
    """The linear map that does to a norm without weight what `linear` does to `norm`."""
    return Affine(linear.weight * norm.weight, torch.addmv(linear.offset, linear.weight, norm.bias))


def scaled(linear: Affine, factor: Tensor | float) -> Affine:
    """The linear map with its outputs times a factor, a number or [out]."""
    rows = factor[:, None] if isinstance(factor, Tensor) else factor
    return Affine(linear.weight * rows, linear.offset * factor)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offset: Tensor, eps: float, gelu: bool, pieces: Pieces) -> Tensor:  # noqa: ANN401
        ones, zeros = x.new_ones(x.shape[1]), x.new_zeros(x.shape[1])
        out = x.new_empty(len(x), len(weight))
        kept = []
        for piece in pieces:
            normed, mean, rstd = normed_of(x[piece], eps, ones, zeros)
            if gelu:
                before = torch.addmm(offset, normed, weight.t())
                rows.line_gelu(before, None, None, out[piece])
            else:
                before = None
                torch.addmm(offset, normed, weight.t(), out=out[piece])
            kept.append((normed, mean, rstd, before))
        ctx.save_for_backward(x, weight)
        ctx.kept, ctx.pieces = kept, pieces
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        d_x, d_weight, d_offset = torch.empty_like(x), torch.zeros_like(weight), weight.new_zeros(len(weight))
        for piece, (normed, mean, rstd, before) in zip(ctx.pieces, ctx.kept, strict=True):
            if before is None:
                d_out = grad[piece]
                d_offset += d_out.sum(0)
            else:
                d_out = grad[piece].clone(memory_format=torch.contiguous_format)
                rows.back_line_gelu(d_out, before, None, (d_offset, None), None)
            d_weight.addmm_(d_out.t(), normed)
            d_x[piece] = through_norm(d_out @ weight, x[piece], mean, rstd)
        return d_x, d_weight, d_offset, None, None, None


def norm_linear(x: Tensor, linear: Affine, eps: float, pieces: Pieces, gelu: bool = False) -> Tensor:
    """Norm without weight, linear map, GELU if asked for: [R,in] -> [R,out]."""
    out: Tensor = _NormLinear.apply(x, linear.weight, linear.offset, eps, gelu, pieces)  # type: ignore[no-untyped-call]
    return out


class _AddNormed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        attended: Tensor,
        weight: Tensor,
        offset: Tensor,
        gain: Tensor,
        shift: Tensor,
        eps: float,
        dropout: Dropout,
        pieces: Pieces,
    ) -> Tensor:
        out = torch.empty_like(x)
        kept = []
        for piece in pieces:
            projected = torch.addmm(offset, attended[piece], weight.t())
            normed, mean, rstd = normed_of(projected, eps, gain, shift)
            drawn = dropout.draw(normed)
            torch.add(x[piece], dropout.keep_where(normed, drawn), out=out[piece])
            kept.append((projected, mean, rstd, drawn))
        ctx.save_for_backward(attended, weight, gain, shift)
        ctx.kept, ctx.pieces, ctx.dropout = kept, pieces, dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        attended, weight, gain, shift = ctx.saved_tensors
        d_attended, d_weight = torch.empty_like(attended), torch.zeros_like(weight)
        d_offset, d_gain, d_shift = weight.new_zeros(len(weight)), torch.zeros_like(gain), torch.zeros_like(shift)
        for piece, (projected, mean, rstd, drawn) in zip(ctx.pieces, ctx.kept, strict=True):
            d_normed = ctx.dropout.kept(grad[piece], drawn)
            d_projected, own_gain, own_shift = aten.native_layer_norm_backward(
                d_normed, projected, [projected.shape[1]], mean, rstd, gain, shift, [True, True, True]
            )
            d_gain += own_gain
            d_shift += own_shift
            d_offset += d_projected.sum(0)
            d_weight.addmm_(d_projected.t(), attended[piece])
            torch.mm(d_projected, weight, out=d_attended[piece])
        return grad, d_attended, d_weight, d_offset, d_gain, d_shift, None, None, None


def add_normed(
    x: Tensor, attended: Tensor, linear: Affine, norm: nn.LayerNorm, dropout: Dropout, pieces: Pieces
) -> Tensor:
    """`x` plus dropout of the norm of a linear map of `attended`: [R,E]."""
    gain, shift = norm.weight / dropout.keep, norm.bias / dropout.keep
    out: Tensor = _AddNormed.apply(  # type: ignore[no-untyped-call]
        x, attended, linear.weight, linear.offset, gain, shift, norm.eps, dropout, pieces
    )
    return out


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        expand: Tensor,
        expand_offset: Tensor,
        contract: Tensor,
        contract_offset: Tensor,
        residual: Tensor,
        eps: tuple[float, float],
        dropout: Dropout,
        pieces: Pieces,
    ) -> Tensor:
        ones, zeros = x.new_ones(len(expand)), x.new_zeros(len(expand))
        width = x.shape[1]
        out = torch.empty_like(x)
        kept = []
        for piece in pieces:
            normed, mean, rstd = normed_of(x[piece], eps[0], ones[:width], zeros[:width])
            before = torch.addmm(expand_offset, normed, expand.t())
            hidden, hidden_rstd, hidden_drawn = rows.gelu_drop_norm(before, eps[1], dropout, ones, zeros)
            last = torch.addmm(contract_offset, hidden, contract.t())
            drawn = dropout.draw(last)
            torch.addcmul(dropout.keep_where(last, drawn), x[piece], residual, out=out[piece])
            kept.append((normed, mean, rstd, before, hidden_drawn, hidden, hidden_rstd, drawn))
        ctx.save_for_backward(x, expand, contract, residual)
        ctx.kept, ctx.pieces, ctx.dropout = kept, pieces, dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, expand, contract, residual = ctx.saved_tensors
        d_x, d_expand, d_contract = torch.empty_like(x), torch.zeros_like(expand), torch.zeros_like(contract)
        d_expand_offset, d_contract_offset = expand.new_zeros(len(expand)), contract.new_zeros(len(contract))
        d_residual = torch.zeros_like(residual)
        dropout = ctx.dropout
        for piece, kept in zip(ctx.pieces, ctx.kept, strict=True):
            normed, mean, rstd, before, hidden_drawn, hidden, hidden_rstd, drawn = kept
            d_out = grad[piece]
            d_residual += (d_out * x[piece]).sum(0)
            d_last = dropout.kept(d_out, drawn)
            d_contract_offset += d_last.sum(0)
            d_contract.addmm_(d_last.t(), hidden)
            # the norm's own factor goes in before the product, where there is less to multiply
            d_hidden = (d_last * hidden_rstd) @ contract
            d_hidden = rows.back_gelu_drop_norm(d_hidden, hidden, before, (dropout, hidden_drawn), d_expand_offset)
            d_expand.addmm_(d_hidden.t(), normed)
            own = through_norm(d_hidden @ expand, x[piece], mean, rstd)
            torch.addcmul(own, d_out, residual, out=d_x[piece])
        return d_x, d_expand, d_expand_offset, d_contract, d_contract_offset, d_residual, None, None, None


def feed_forward(
    x: Tensor,
    expand: Affine,
    contract: Affine,
    residual: Tensor,
    eps: tuple[float, float],
    dropout: Dropout,
    pieces: Pieces,
) -> Tensor:
    """`residual * x` plus dropout(contract(norm(dropout(GELU(expand(norm(x))))))): [R,E].

    expand, contract : with the weights of the norms before them. eps : of the two norms.
    """
    keep = dropout.keep
    last = scaled(contract, 1 / keep)
    # a norm does not see the factor of dropout, but for its epsilon
    bounds = (eps[0], eps[1] * keep**2)
    out: Tensor = _FeedForward.apply(  # type: ignore[no-untyped-call]
        x, expand.weight, expand.offset, last.weight, last.offset, residual, bounds, dropout, pieces
    )
    return out
