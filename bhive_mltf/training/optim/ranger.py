"""Ranger: rectified Adam inside Lookahead, the optimiser of the Particle Transformer's reference trainings.

L. Liu et al., arXiv:1908.03265 (RAdam); M. Zhang et al., arXiv:1907.08610 (Lookahead); both together are
L. Wright's Ranger. Slow weights start at the first weights; after every k steps they go the fraction alpha of the way
to the fast ones, which then start again from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

SLOW = "slow"  # state of a parameter
STEPS = "lookahead_step"  # entry of a group: steps since the slow weights moved


class Ranger(torch.optim.RAdam):
    """RAdam with decoupled weight decay, in Lookahead.

    Slow weights and the count of steps are part of `state_dict`, so that a resumed training equals an uncut one.

    Parameters
    ----------
    alpha : fraction of the way that slow weights go, in [0, 1].
    k : steps between that, at least 1.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        *,
        alpha: float = 0.5,
        k: int = 6,
    ) -> None:
        if not 0 <= alpha <= 1 or k < 1:
            raise ValueError(f"alpha is {alpha} and k is {k}, but must be in [0, 1] and at least 1")
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)
        for group in self.param_groups:
            group.update(alpha=alpha, k=k, **{STEPS: 0})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @override
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of RAdam; after each k-th, Lookahead."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            # RAdam takes a parameter with any state for one that it has seen
            first = [(p, p.clone()) for group in self.param_groups for p in group["params"] if _is_new(p, self.state)]
            super().step()
            for p, value in first:
                self.state[p][SLOW] = value
            for group in self.param_groups:
                self._look_ahead(group)
        return loss

    def _look_ahead(self, group: dict[str, Any]) -> None:
        group[STEPS] += 1
        if group[STEPS] < group["k"]:
            return
        group[STEPS] = 0
        fast = [p for p in group["params"] if SLOW in self.state.get(p, {})]
        if fast:
            slow = [self.state[p][SLOW] for p in fast]
            torch._foreach_lerp_(slow, fast, group["alpha"])
            torch._foreach_copy_(fast, slow)


def _is_new(parameter: nn.Parameter, state: dict[Tensor, Any]) -> bool:
    return parameter.grad is not None and SLOW not in state.get(parameter, {})
