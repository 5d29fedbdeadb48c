"""Precision of a training, as one option with a name, and what it switches.

| `training_precision` | weights, sums | products on a GPU | |
| --- | --- | --- | --- |
| `float32` | float32 | float32, TF32 nowhere | |
| `tf32` | float32 | TF32 | for GPUs from Ampere on |
| `bf16` | float32 | bfloat16, by autocast | no scaler |
| `fp16` | float32 | float16, by autocast | gradients scaled, as they would be lost below 6e-8 |
| `float64` | float64 | float64 | |
| `float16` | float32 | float32 | upstream's: inputs rounded to float16 |

`mixed_precision True` keeps upstream's meaning, torch's default autocast: `fp16` on a GPU, `bf16` on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bhive_mltf.errors import ParameterError

if TYPE_CHECKING:
    from bhive_mltf.interface import Batch, GroupBatch
    from bhive_mltf.training.plan import TrainingPlan

_HALF_LIMIT = 65504.0
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """What a precision switches.

    name : of the table above, as it is in effect; recorded.
    weights : type of weights and inputs.
    autocast : type of products under autocast, None without.
    tf32 : whether products of float32 may be in TF32.
    half_inputs : whether inputs are rounded to float16 first.
    """

    name: str
    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    tf32: bool = False
    half_inputs: bool = False

    @classmethod
    def of(cls, plan: TrainingPlan, device: torch.device) -> Precision:
        """That of a plan on a device; ParameterError for one that the device does not have."""
        name = plan.training_precision
        if plan.mixed_precision:
            name = "fp16" if device.type == "cuda" else "bf16"
        if name == "fp16" and device.type == "cpu":
            raise ParameterError(
                "training_precision is 'fp16', which needs a GPU, and there is none here: take 'bf16' or 'float32'"
            )
        return cls(
            name,
            torch.float64 if plan.training_precision == "float64" else torch.float32,
            _AUTOCAST.get(name),
            name == "tf32",
            plan.training_precision == "float16",
        )

    @property
    def scaled(self) -> bool:
        """Whether gradients are scaled, so that small ones are not lost."""
        return self.autocast is torch.float16

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The scaler of the gradients, without effect where none is needed."""
        return torch.amp.GradScaler(device.type, enabled=self.scaled)

    def autocasting(self, device: torch.device) -> AbstractContextManager[Any]:
        """For a forward pass."""
        return torch.autocast(device.type, self.autocast, enabled=self.autocast is not None)


def half_inputs(batch: Batch) -> Batch:
    """Inputs as upstream's half-precision data sets have them; the computation stays float32."""
    return replace(batch, groups={name: _rounded(group) for name, group in batch.groups.items()})


def _rounded(group: GroupBatch) -> GroupBatch:
    def rounded(values: Tensor) -> Tensor:
        return values.clamp(-_HALF_LIMIT, _HALF_LIMIT).half().to(values.dtype)

    vectors = group.four_vectors
    return replace(group, features=rounded(group.features), four_vectors=None if vectors is None else rounded(vectors))


@contextmanager
def float32_products(*, tf32: bool = False) -> Iterator[None]:
    """Products of float32 in TF32 while it lasts, or, cuDNN's too, which torch has in TF32, in full precision."""
    cudnn: Any = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
