"""Mixed precision of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bhive_mltf.models.cpu_kernels.products import matmul_precision


@contextmanager
def bfloat16_products(device: torch.device, enabled: bool) -> Iterator[None]:
    """For forward and backward pass: products of float32 in bfloat16 on a CPU that has them, summed in float32.

    Autocast does not reach the products of steps of autograd that are made of several operations (`models.fused`).
    Without effect on other devices and on processors without products of bfloat16.
    """
    if not enabled or device.type != "cpu":
        yield
        return
    with matmul_precision("medium"):
        yield


@contextmanager
def mixed(device: torch.device, enabled: bool) -> Iterator[None]:
    """For a forward pass: autocast to float16 on CUDA as upstream, to bfloat16 on a CPU, which are torch's defaults."""
    with torch.autocast(device.type, enabled=enabled), bfloat16_products(device, enabled):
        yield
