"""Batch norms as a factor and an offset of each channel, from moments that the caller has found on its way.

With several ranks a norm carries their process `group`, and the moments are those of all ranks' rows (Chan et al.,
1979). A rank may have no rows.

Axes: P rows, K channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bhive_mltf.models.cpu_kernels.messages import message


class Moments(NamedTuple):
    """Mean [K] and biased variance [K], or covariance [K,K], of a number of `rows`."""

    rows: int
    mean: Tensor
    variance: Tensor


class Normal(NamedTuple):
    """A batch norm of one batch: mean [K] and variance [K] that it normalises with."""

    mean: Tensor
    variance: Tensor


def variances(rows: Tensor) -> Moments:
    """Mean and variance [K] of rows [P,K] that need no gradient; float64, since torch's own for rows lose digits."""
    values, mean = _centred(rows)
    return Moments(len(rows), mean, values.square_().sum(0) / max(len(rows), 1))


def covariance(rows: Tensor) -> Moments:
    """Mean [K] and covariance [K,K] of rows [P,K] that need no gradient; float64."""
    values, mean = _centred(rows)
    return Moments(len(rows), mean, values.t() @ values / max(len(rows), 1))


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    values = rows.detach().double()
    mean = values.mean(0) if len(rows) else values.new_zeros(rows.shape[1])
    return values.sub_(mean) if rows.dtype != torch.float64 else values - mean, mean


def together(own: Sequence[Moments], norm: nn.Module) -> list[Moments]:
    """Several moments that need no gradient, each of all ranks' rows, in one message of the ranks of `norm`."""
    group = _group(norm)
    if group is None:
        return list(own)
    gathered = _gathered(torch.cat([_packed(moments) for moments in own]), group)
    parts = torch.split(gathered, [1 + len(moments.mean) + moments.variance.numel() for moments in own], 1)
    return [_merged(ranks, moments.variance.shape) for ranks, moments in zip(parts, own, strict=True)]


def across_ranks(moments: Moments, norm: nn.BatchNorm1d) -> Moments:
    """Moments [K] of all ranks' rows; gradients flow back to each rank's own."""
    group = _group(norm)
    if group is None:
        return moments
    count, mean, variance = _AcrossRanks.apply(moments.mean, moments.variance, moments.rows, group)  # type: ignore[no-untyped-call]
    return Moments(int(count), mean, variance)


def normal(norm: nn.BatchNorm1d, moments: Moments) -> Normal:
    """What the norm normalises with; in training its running statistics follow.

    Fewer than two rows have no variance: the running statistics, which stay as they are.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if not norm.training or moments.rows < 2:
        return Normal(norm.running_mean.clone(), norm.running_var.clone())
    unbiased = moments.variance.detach() * (moments.rows / (moments.rows - 1))
    update_running(norm, moments.mean.detach(), unbiased)
    return Normal(moments.mean, moments.variance)


@torch.no_grad()
def update_running(norm: nn.BatchNorm1d, mean: Tensor, unbiased: Tensor) -> None:
    """Let the running statistics of a norm follow mean and unbiased variance [K] of a batch."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    rate = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), rate)
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), rate)


def _group(norm: nn.Module) -> dist.ProcessGroup | None:
    return getattr(norm, "group", None) if norm.training else None


def _packed(own: Moments) -> Tensor:
    return torch.cat((own.mean.new_tensor([own.rows]), own.mean, own.variance.flatten()))


def _gathered(packed: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[W,...] of all ranks."""
    ranks = packed.new_empty(dist.get_world_size(group), len(packed))
    with message():
        dist.all_gather(list(ranks), packed, group=group)
    return ranks


def _merged(ranks: Tensor, shape: torch.Size) -> Moments:
    """Of all rows, from what each rank has packed."""
    width = shape[0]
    counts, means, variances = ranks[:, 0], ranks[:, 1 : 1 + width], ranks[:, 1 + width :]
    shares = counts / counts.sum().clamp(min=1)
    mean = shares @ means
    apart = means - mean
    between = apart.square() if len(shape) == 1 else (apart[:, :, None] * apart[:, None]).flatten(1)
    return Moments(int(counts.sum()), mean, (shares @ (variances + between)).view(shape))


class _AcrossRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        mean: Tensor,
        variance: Tensor,
        count: int,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = Moments(count, mean.double(), variance.double())
        merged = _merged(_gathered(_packed(own), group), variance.shape)
        ctx.group, ctx.share = group, count / max(merged.rows, 1)
        ctx.save_for_backward(mean.double() - merged.mean)
        total = torch.tensor(merged.rows)
        ctx.mark_non_differentiable(total)
        return total, merged.mean.to(mean.dtype), merged.variance.to(mean.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, d_mean: Tensor, d_variance: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (apart,) = ctx.saved_tensors
        both = torch.stack((d_mean, d_variance)).double()
        with message():
            dist.all_reduce(both, group=ctx.group)
        own_mean = (both[0] + 2 * both[1] * apart) * ctx.share
        return own_mean.to(d_mean.dtype), (both[1] * ctx.share).to(d_mean.dtype), None, None
