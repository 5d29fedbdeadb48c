"""Updates that spare the weights once a gradient is not finite. No number leaves a GPU for it.

The norm of the gradient of the global batch is the same on all ranks, so that they agree without a message.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bhive_mltf.training.optim.optimisers import needs_closure


class Guard:
    """The update of an optimiser, until a gradient is not finite; weights and optimiser then stay as they are.

    norm : of the gradient of the last step, on its device, before clipping; 0 before the first.
    holds : whether the weights are spared. Fused optimisers look at a flag on the device, on a CPU the flag is read;
        other optimisers on a GPU, those that need a closure, and all under a gradient scaler (`acts` False) go on.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, *, acts: bool = True) -> None:
        self._optimizer = optimizer
        self._fused = all(group.get("fused") for group in optimizer.param_groups)
        self._broken = torch.zeros((), device=device)
        self.norm = torch.zeros((), device=device)
        self.holds = acts and (self._fused or device.type == "cpu") and not needs_closure(optimizer)

    def step(self, norm: Tensor) -> None:
        """Update the weights if this norm, and all before it, are finite."""
        self.norm = norm
        self._broken = torch.maximum(self._broken, (~torch.isfinite(norm)).float())
        if self._fused:
            # what torch's gradient scaler uses to skip a step
            self._optimizer.found_inf = self._broken  # type: ignore[attr-defined]
            self._optimizer.step()
        elif not self.holds or not self._broken:
            self._optimizer.step()

    @property
    def stopped(self) -> bool:
        """Whether a gradient was not finite, where looking costs nothing: on a CPU. False on a GPU."""
        return self._broken.device.type == "cpu" and bool(self._broken)
