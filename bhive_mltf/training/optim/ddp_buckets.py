"""The order in which gradients of several ranks are summed, fixed before the first step of a process.

DDP lays its buckets out anew after the first backward pass of a process. With more than two ranks that changes
the order of the sums, so that a resumed process would differ from an uncut one in the last bits. One backward
pass on the first batch, thrown away, brings every process to the same layout (weak point W33 is met here too).
"""

from __future__ import annotations

import logging

import torch
from torch import nn

from bhive_mltf.interface import Batch
from bhive_mltf.training.step import Stepper

logger = logging.getLogger(__name__)


def fix_reduction_layout(stepper: Stepper, batch: Batch, global_step: int) -> None:
    """Wrap the model for several ranks and bring DDP to its final layout; weights and buffers stay as they are.

    Parameters without a gradient are frozen before, since DDP would wait for them: they could not change anyway.
    """
    if stepper.world.size == 1:
        return
    buffers = {name: buffer.clone() for name, buffer in stepper.model.named_buffers()}
    stepper.seed(global_step)
    stepper.backward(batch)
    _freeze_unused(stepper.model, stepper.world.is_first)
    stepper.model.zero_grad(set_to_none=True)
    stepper.wrap()
    stepper.backward(batch)
    stepper.model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in stepper.model.named_buffers():
            buffer.copy_(buffers[name])


def _freeze_unused(model: nn.Module, tell: bool) -> None:
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    if unused and tell:
        logger.warning("These parameters of the model are not used in a step and stay as they are: %s", unused)
