"""From upstream's parameters to a function on batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

from bhive_mltf.attacks.factors import Factors
from bhive_mltf.attacks.integers import INTEGER_FEATURES
from bhive_mltf.attacks.methods import METHODS
from bhive_mltf.attacks.options import AttackOptions
from bhive_mltf.attacks.space import Space
from bhive_mltf.interface import Batch, ModelInputs
from bhive_mltf.models.base import Outputs

Attack = Callable[[Batch], Batch]


def pick_attack(
    options: AttackOptions, model: nn.Module, inputs: ModelInputs, factors: Factors | None = None
) -> Attack | None:
    """The attack on `model` that `options` ask for; None for `nominal`.

    It makes of a batch one with other features, in the model's evaluation mode: batch norms use their running
    statistics, so that each jet is attacked for itself, whatever the ranks, and no statistics change.

    Parameters
    ----------
    inputs : what `model` reads; its batches were made for it.
    factors : for `individual_factors`, see `feature_factors`.
    """
    if options.is_nominal:
        return None
    options.check()
    method = METHODS[options.attack]
    integers = INTEGER_FEATURES | declared_integers(model)
    factors = factors if options.individual_factors else None

    def logits_of(batch: Batch) -> Tensor:
        output = model(batch)
        logits: Tensor = output.logits if isinstance(output, Outputs) else output
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @lru_cache(4)
    def factors_on(device: torch.device) -> Mapping[str, Tensor] | None:
        if factors is None:
            return None
        return {name: torch.as_tensor(values, device=device) for name, values in factors.items()}

    def attack(batch: Batch) -> Batch:
        if len(batch) == 0:
            return batch
        space = Space.of(batch, options, inputs, integers, factors_on(batch.target.device))
        with _attacked(model):
            changes = method(space, logits_of, options)
        return space.moved([change.detach() for change in changes])

    return attack


def declared_integers(model: nn.Module) -> frozenset[str]:
    """Integer features that a model declares itself, as B-Hive's do: `integer_features`, group -> names."""
    found: set[str] = set()
    for one in (model, getattr(model, "module", None)):
        declared = getattr(one, "integer_features", None) or {}
        found.update(name for names in declared.values() for name in names)
    return frozenset(found)


@contextmanager
def _attacked(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, but for recurrent layers, whose gradients CUDA gives in training mode only."""
    was_training = model.training
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.RNNBase) and module.dropout == 0:
            module.train()
    try:
        yield
    finally:
        model.train(was_training)
