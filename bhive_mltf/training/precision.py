"""Mixed precision of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from bhive_mltf.models.products import matmul_precision


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    """For a forward pass: float16 on CUDA as upstream, bfloat16 on a CPU, which are torch's defaults."""
    return torch.autocast(device.type, enabled=enabled)


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
