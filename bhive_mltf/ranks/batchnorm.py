"""Batch norms with the statistics of the global batch, on any device, over gloo or NCCL.

Every rank sends count, mean and variance of its elements in float64, one message per norm forward and one backward, and
merges those of all (Chan et al., 1979). A rank sends the same kind of message whatever it has, no jets or values of
half precision, and nothing is read on the host. Keys of a state dict stay those of a plain batch norm.
B: jets of this rank; C: channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

aten = torch.ops.aten
Group = dist.ProcessGroup
_CHUNK = 2048  # rows that stay in the cache of a core


def _own_moments(x: Tensor) -> Tensor:
    """Count, mean and biased variance [3,C] of x [B,C] or [B,C,...], float64."""
    own = x.new_zeros(3, x.shape[1], dtype=torch.float64)
    count = x.numel() // x.shape[1]
    if count == 0:
        return own
    if x.device.type == "cpu" and x.dim() == 2:
        # torch's kernel for rows loses three digits on 10^4 of them
        shift = x[:_CHUNK].mean(0, dtype=torch.promote_types(x.dtype, torch.float32))
        for rows in torch.split(x, _CHUNK):
            away = rows - shift
            own[1] += away.sum(0)
            own[2] += away.square_().sum(0)
        own[1:] /= count
        own[2] -= own[1].square()
        own[1] += shift
    else:
        # with buffers of float32, or else the statistics of half-precision values come in half precision
        unused = own[:2].to(torch.promote_types(x.dtype, torch.float32))
        own[1], own[2] = aten.batch_norm_update_stats(x, *unused, 0.0)
    own[0] = count
    return own


def global_moments(x: Tensor, group: Group) -> Tensor:
    """Count, mean and biased variance [3,C], float64, of the elements of all ranks."""
    own = _own_moments(x)
    ranks = own.new_empty(dist.get_world_size(group), *own.shape)
    dist.all_gather(list(ranks), own, group=group)
    counts, means, variances = ranks.unbind(1)
    total = counts.sum(0)
    shares = counts / total.clamp(min=1)
    mean = (shares * means).sum(0)
    return torch.stack((total, mean, (shares * (variances + (means - mean).square())).sum(0)))


class _Normalise(torch.autograd.Function):
    """(x - mean) / std * weight + bias with the moments of all ranks; gradients flow through these too."""

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them by position
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        moments: Tensor,
        eps: float,
        group: Group,
    ) -> Tensor:
        kind = torch.promote_types(x.dtype, torch.float32)
        mean, variance = moments[1].to(kind), moments[2].to(kind)
        ctx.save_for_backward(x, weight, mean, variance, moments[0])
        ctx.eps, ctx.group = eps, group
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, mean, variance, count = ctx.saved_tensors
        inverse = torch.rsqrt(variance + ctx.eps)
        of_weight, of_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        if x.numel():
            # CUDA's kernel refuses to be without saved statistics, which a CPU does not look at, and takes the type of
            # its results from a weight, whose values nobody looks at
            _, of_weight, of_bias = aten.native_batch_norm_backward(
                grad, x, mean, mean, variance, mean, inverse, False, ctx.eps, [False, True, True]
            )
        parameters = (None, None) if weight is None else (of_weight.to(weight.dtype), of_bias.to(weight.dtype))
        if not ctx.needs_input_grad[0]:
            return None, *parameters, None, None, None
        sums = torch.stack((of_weight, of_bias)).double()
        dist.all_reduce(sums, group=ctx.group)
        slope, offset = (sums / count).to(mean.dtype)
        scale = inverse if weight is None else inverse * weight
        # scale * (grad - offset - slope * (x - mean) / std)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        line = torch.addcmul((slope * inverse * mean - offset).view(shape), x, -(slope * inverse).view(shape))
        return line.add_(grad).mul_(scale.view(shape)).to(x.dtype), *parameters, None, None, None


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm over the jets of all ranks of `group` in training; plain in evaluation.

    With fewer than two elements in all there is no variance: the running statistics normalise, and stay.
    """

    group: Group

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        """[B,C] or [B,C,...], which may differ from rank to rank but for C, to the same shape."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        if not (self.training or self.running_mean is None):
            return super().forward(x)
        moments = global_moments(x.detach(), self.group)
        few = moments[0] < 2
        if self.running_mean is not None and self.running_var is not None:
            known = torch.stack((self.running_mean, self.running_var)).double()
            if self.training:
                self._update_running(moments, known, few)
            # an infinite count: these statistics have no gradient
            fixed = torch.cat((torch.full_like(moments[:1], torch.inf), known))
            moments = torch.where(few, fixed, moments)
        normed: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, moments, self.eps, self.group
        )
        return normed

    @torch.no_grad()
    def _update_running(self, moments: Tensor, known: Tensor, few: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count, mean, variance = moments
        self.num_batches_tracked.add_(~few[0])
        unbiased = variance * count / (count - 1).clamp(min=1)
        if self.momentum is None:
            rate: Tensor | float = 1 / self.num_batches_tracked.clamp(min=1).double()
        else:
            rate = self.momentum
        new = torch.where(few, known, known + rate * (torch.stack((mean, unbiased)) - known))
        self.running_mean.copy_(new[0])
        self.running_var.copy_(new[1])


class GlobalBatchNorm1d(GlobalBatchNorm, nn.BatchNorm1d):
    """See `GlobalBatchNorm`."""


class GlobalBatchNorm2d(GlobalBatchNorm, nn.BatchNorm2d):
    """See `GlobalBatchNorm`."""


_GLOBAL: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: GlobalBatchNorm1d,
    nn.BatchNorm2d: GlobalBatchNorm2d,
}
_PLAIN = {found: plain for plain, found in _GLOBAL.items()}


def synchronise_batch_norms(module: nn.Module, group: Group | None) -> nn.Module:
    """Make all batch norms of `module` use the global batch, in place; `group` None (one rank) changes nothing."""
    if group is not None:
        for child in module.modules():
            if type(child) in _GLOBAL:
                # the same object, so that whoever holds a reference sees it too
                child.__class__ = _GLOBAL[type(child)]
                child.group = group  # type: ignore[assignment]
    return module


def plain_batch_norms(module: nn.Module) -> nn.Module:
    """The same module without process groups, to be copied and stored; all weights and keys stay."""
    for child in module.modules():
        if type(child) in _PLAIN:
            child.__class__ = _PLAIN[type(child)]
            del child.group
    return module
