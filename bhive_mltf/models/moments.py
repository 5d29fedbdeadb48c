"""Batch norms as a factor and an offset of each channel, from moments that the caller has found on its way.

With several ranks a norm carries their process `group`, and the moments are those of all ranks' rows (Chan et al.,
1979). A rank may have no rows.

Axes: P rows, K channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Moments(NamedTuple):
    """Mean [K] and biased variance [K], or covariance [K,K], of a number of `rows`."""

    rows: int
    mean: Tensor
    variance: Tensor


class Normal(NamedTuple):
    """A batch norm of one batch: mean [K] and variance [K] that it normalises with."""

    mean: Tensor
    variance: Tensor


def covariance(rows: Tensor, norm: nn.BatchNorm1d) -> Moments:
    """Moments of rows [P,K] that need no gradient, those of all ranks; float64."""
    values = rows.double()
    mean = values.mean(0) if len(rows) else values.new_zeros(rows.shape[1])
    shifted = values - mean
    return _merged(Moments(len(rows), mean, shifted.t() @ shifted / max(len(rows), 1)), _group(norm))


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
    with torch.no_grad():
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        rate = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        unbiased = moments.variance.detach() * (moments.rows / (moments.rows - 1))
        norm.running_mean.lerp_(moments.mean.detach().to(norm.running_mean.dtype), rate)
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), rate)
    return Normal(moments.mean, moments.variance)


def _group(norm: nn.Module) -> dist.ProcessGroup | None:
    return getattr(norm, "group", None) if norm.training else None


def _merged(own: Moments, group: dist.ProcessGroup | None) -> Moments:
    if group is None:
        return own
    packed = torch.cat((own.mean.new_tensor([own.rows]), own.mean, own.variance.flatten()))
    gathered = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, packed, group=group)
    ranks = torch.stack(gathered)
    width = len(own.mean)
    counts, means, variances = ranks[:, 0], ranks[:, 1 : 1 + width], ranks[:, 1 + width :]
    shares = counts / counts.sum().clamp(min=1)
    mean = shares @ means
    apart = means - mean
    between = apart.square() if own.variance.dim() == 1 else (apart[:, :, None] * apart[:, None]).flatten(1)
    return Moments(int(counts.sum()), mean, (shares @ (variances + between)).view(own.variance.shape))


class _AcrossRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        mean: Tensor,
        variance: Tensor,
        count: int,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor]:
        merged = _merged(Moments(count, mean.double(), variance.double()), group)
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
        dist.all_reduce(both, group=ctx.group)
        own_mean = (both[0] + 2 * both[1] * apart) * ctx.share
        return own_mean.to(d_mean.dtype), (both[1] * ctx.share).to(d_mean.dtype), None, None
