"""Optimisers by upstream's names."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bhive_mltf.errors import ParameterError
from bhive_mltf.training import choices
from bhive_mltf.training.optim.ranger import Ranger

# Devices on which torch updates all weights in one kernel; elsewhere it picks the best by itself.
_FUSED = {"Adam": ("cpu", "cuda"), "AdamW": ("cpu", "cuda"), "SGD": ("cpu", "cuda"), "Adagrad": ("cpu",)}
# Options of optimisers that say with which kernels, not what they do.
_KERNELS = ("fused", "foreach")


def create_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    *,
    weight_decay: float | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> torch.optim.Optimizer:
    """The optimiser `name` of torch.optim, or Ranger, given those of `kwargs` that it knows, as upstream does.

    Parameters
    ----------
    weight_decay : None for the optimiser's own default: 0.01 for AdamW, else 0.

    Raises
    ------
    ParameterError : a name that is not in `choices.OPTIMIZERS`, or a weight decay for an optimiser without.
    """
    if name not in choices.OPTIMIZERS:
        raise ParameterError(f"optimizer is {name!r}, but must be one of {', '.join(choices.OPTIMIZERS)}")
    kind: Any = Ranger if name == "Ranger" else getattr(torch.optim, name)
    known = inspect.signature(kind).parameters
    # the type too: Adafactor's eps is a pair of another meaning
    taken = {k: v for k, v in kwargs.items() if k in known and type(v) is type(known[k].default)}
    if weight_decay is not None:
        if "weight_decay" not in known:
            raise ParameterError(f"weight_decay is {weight_decay}, but the optimizer {name} has none: leave it out")
        taken["weight_decay"] = weight_decay
    values = list(parameters)
    if values and all(p.device.type in _FUSED.get(name, ()) for p in values):
        taken["fused"] = True
    optimizer = kind(values, lr=learning_rate, **taken)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take the state of an optimiser that may have run on another device; the kernels stay those of this one."""
    own = [{name: group[name] for name in _KERNELS if name in group} for group in optimizer.param_groups]
    groups = [{**group, **kept} for group, kept in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """True for an optimiser that evaluates the loss several times in a step."""
    return isinstance(optimizer, torch.optim.LBFGS)
