"""Batch norms with the statistics of the global batch.

On CUDA torch's own SyncBatchNorm; on a CPU, where torch has none, the same over gloo: every rank sends count,
mean and summed squared deviations, and merges all of them (Chan et al., 1979). State-dict keys stay
those of a plain batch norm. B: jets of this rank, may be 0; C: channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bhive_mltf.models.cpu_kernels.messages import message
from bhive_mltf.models.cpu_kernels.moments import update_running

Group = dist.ProcessGroup


class _GlobalNorm(torch.autograd.Function):
    """(x - mean) / std * weight + bias with mean and variance of all ranks' elements; gradients flow through both.

    torch's fused kernels for given statistics do the passes over `x`; between them ranks exchange 2 C numbers.
    """

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
        # moments [3,C] float64: count, mean, variance of the global batch
        mean, variance = moments[1].to(x.dtype), moments[2].to(x.dtype)
        ctx.save_for_backward(x, weight, mean, variance, moments[0])
        ctx.eps, ctx.group = eps, group
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, mean, variance, count = ctx.saved_tensors
        of_weight, of_bias = _parameter_gradients(grad, x, mean, variance, ctx.eps)
        sums = torch.stack([of_bias, of_weight]).double()
        with message():
            dist.all_reduce(sums, group=ctx.group)
        offset, slope = (sums / count).to(x.dtype)
        # dx = scale (grad - offset - slope (x - mean) / std), as a line in grad and one in x
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = inverse if weight is None else inverse * weight
        dx = _line(x, mean, -scale * slope * inverse, -scale * offset)
        dx += _line(grad, torch.zeros_like(mean), scale, None)
        return dx, None if weight is None else of_weight, None if weight is None else of_bias, None, None, None


def _parameter_gradients(grad: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Sums [C] over this rank's elements of grad times the normalised x, and of grad."""
    if x.numel() == 0:
        return torch.zeros_like(mean), torch.zeros_like(mean)
    _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
        grad, x, None, mean, variance, None, None, False, eps, [False, True, True]
    )
    return of_weight, of_bias


def _line(x: Tensor, origin: Tensor, slope: Tensor, offset: Tensor | None) -> Tensor:
    """The line slope (x - origin) + offset of each channel, in one pass."""
    return F.batch_norm(x, origin, torch.ones_like(origin), slope, offset, False, 0.0, 0.0)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d over the jets of all ranks of `group` in training; plain in evaluation."""

    group: Group | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B,C] or [B,C,L], L may differ from rank to rank, to the same shape."""
        self._check_input_dim(x)
        if not (self.training or self.running_mean is None):
            return super().forward(x)
        assert self.group is not None
        values = x if x.dtype in (torch.float32, torch.float64) else x.float()
        moments = _global_moments(values.detach(), self.group)
        if moments[0, 0] < 2:
            # no variance anywhere: the running statistics, unchanged, as taggers do on one rank
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        self._update_running(moments)
        normed: Tensor = _GlobalNorm.apply(  # type: ignore[no-untyped-call]
            values, self.weight, self.bias, moments, self.eps, self.group
        )
        return normed.to(x.dtype)

    @torch.no_grad()
    def _update_running(self, moments: Tensor) -> None:
        if not self.training or self.running_mean is None or self.running_var is None:
            return
        count, mean, variance = moments
        update_running(self, mean, variance * count / (count - 1))


def synchronise_batch_norms(module: nn.Module, device: torch.device, group: Group | None) -> nn.Module:
    """Make all batch norms of `module` use the global batch; `group` None (one rank) changes nothing."""
    if group is None:
        return module
    if device.type == "cuda":
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        assert isinstance(converted, nn.Module)
        return converted
    for child in module.modules():
        if type(child) is nn.BatchNorm1d:
            # in place, so that existing references see it too
            child.__class__ = GlobalBatchNorm1d
            child.group = group  # type: ignore[assignment]
    return module


def plain_batch_norms(module: nn.Module) -> nn.Module:
    """The same module without process groups, to be copied and stored; all weights and keys stay."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.SyncBatchNorm):
                plain = nn.BatchNorm1d(child.num_features, child.eps, child.momentum, child.affine)
                plain.__dict__.update({k: v for k, v in child.__dict__.items() if k != "process_group"})
                setattr(parent, name, plain)
    for child in module.modules():
        if isinstance(child, GlobalBatchNorm1d):
            del child.group
            child.__class__ = nn.BatchNorm1d  # type: ignore[assignment]
    return module


def _global_moments(x: Tensor, group: Group) -> Tensor:
    """Count, mean and variance [3,C], float64, of all ranks' elements per channel."""
    count = x.numel() // x.shape[1]
    own = torch.zeros(3, x.shape[1], dtype=torch.float64)
    if count > 0:
        # torch's own kernel for batch norms; var_mean takes twenty times as long
        mean, variance = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
        own[0], own[1], own[2] = count, mean, variance.double() * count
    gathered = own.new_empty(dist.get_world_size(group), 3, x.shape[1])
    with message():
        dist.all_gather(list(gathered), own, group=group)
    counts, means, deviations = gathered.unbind(1)
    total = counts.sum(0)
    safe = total.clamp(min=1)
    mean = (counts * means).sum(0) / safe
    deviation = deviations.sum(0) + (counts * (means - mean) ** 2).sum(0)
    return torch.stack([total, mean, deviation / safe])
