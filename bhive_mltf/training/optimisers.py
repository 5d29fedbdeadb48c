"""Optimisers by upstream's names."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bhive_mltf.errors import ParameterError
from bhive_mltf.training import names


def create_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    **kwargs: Any,  # noqa: ANN401
) -> torch.optim.Optimizer:
    """The optimiser `name` of torch.optim, given those of `kwargs` that it knows, as upstream does.

    Raises
    ------
    ParameterError : a name that is not in `names.OPTIMIZERS`.
    """
    if name not in names.OPTIMIZERS:
        raise ParameterError(f"optimizer is {name!r}, but must be one of {', '.join(names.OPTIMIZERS)}.")
    kind = getattr(torch.optim, name)
    known = inspect.signature(kind).parameters
    # the type too: Adafactor's eps is a pair of another meaning
    taken = {k: v for k, v in kwargs.items() if k in known and type(v) is type(known[k].default)}
    optimizer = kind(list(parameters), lr=learning_rate, **taken)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer
