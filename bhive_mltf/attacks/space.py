"""Which inputs of a batch an attack may move, and how far; from changes to a batch.

B: jets; N: candidates; F: columns of a group. Everything below is a list with an entry per group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from bhive_mltf.attacks.options import AttackOptions
from bhive_mltf.interface import Batch, GroupBatch, ModelInputs

Changes = list[Tensor]
"""Per group [B,N,F], in the features' own units."""


@dataclass(frozen=True)
class Space:
    """The inputs of one batch as an attack sees them.

    batch : as it is.
    movable : bool [B,N,F] per group.
    scale : [F] per group, the factor of each feature.
    limit : [B,N,F] per group, the largest change; infinite where there is none.
    shared : per group, for each of the four columns of its four-vectors the feature that it also is, or -1.
    """

    batch: Batch
    movable: list[Tensor]
    scale: list[Tensor]
    limit: list[Tensor]
    shared: list[tuple[int, ...]]

    @classmethod
    def of(
        cls,
        batch: Batch,
        options: AttackOptions,
        inputs: ModelInputs,
        integers: frozenset[str],
        factors: Mapping[str, Tensor] | None,
    ) -> Space:
        """What `options` let move in `batch`, which was made for `inputs`.

        factors : [F] per group on the device of the batch; None means all 1.
        """
        groups = batch.groups
        scale = [_scale(group, None if factors is None else factors[name]) for name, group in groups.items()]
        return cls(
            batch,
            [_movable(group, batch.target, integers, reduce=options.reduce) for group in groups.values()],
            scale,
            [_limit(group, own, options) for group, own in zip(groups.values(), scale, strict=True)],
            [_shared(inputs, name, group) for name, group in groups.items()],
        )

    def nothing(self) -> Changes:
        """No change."""
        return [torch.zeros_like(group.features) for group in self.batch.groups.values()]

    def within(self, changes: Sequence[Tensor]) -> Changes:
        """The changes, cut to what may move and how far; what is not a number becomes 0."""
        cut = []
        for change, movable, limit in zip(changes, self.movable, self.limit, strict=True):
            moved = torch.minimum(torch.maximum(change, -limit), limit)
            cut.append(torch.where(movable & ~moved.isnan(), moved, 0.0))
        return cut

    def moved(self, changes: Sequence[Tensor]) -> Batch:
        """The batch after these changes; four-vectors follow the features that are also their components."""
        groups: dict[str, GroupBatch] = {}
        for (name, group), change, shared in zip(self.batch.groups.items(), changes, self.shared, strict=True):
            features = group.features + change
            groups[name] = replace(group, features=features, four_vectors=_vectors(group, features, shared))
        return replace(self.batch, groups=groups)

    def gradients(self, changes: Sequence[Tensor], of: Callable[[Batch], Sequence[Tensor]]) -> list[Changes]:
        """Gradients with respect to the changes of each of the numbers that `of(moved batch)` gives.

        Zero for inputs that the number does not depend on.
        """
        leaves = [change.detach().requires_grad_() for change in changes]
        with torch.enable_grad():
            values = of(self.moved(leaves))
            found = []
            for i, value in enumerate(values):
                kept = i + 1 < len(values)
                found.append(torch.autograd.grad(value, leaves, retain_graph=kept, allow_unused=True))
        return [
            [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, one, strict=True)] for one in found
        ]


def _movable(group: GroupBatch, target: Tensor, integers: frozenset[str], *, reduce: bool) -> Tensor:
    real = (group.mask & (target >= 0)[:, None])[..., None]
    if not reduce:
        return real.expand_as(group.features)
    return real & _free(group.columns, integers, real.device) & (group.features != 0)


@lru_cache(64)
def _free(columns: tuple[str, ...], integers: frozenset[str], device: torch.device) -> Tensor:
    """Bool [F], columns that are no integers; kept, since sending them to a device makes the host wait."""
    return torch.tensor([column not in integers for column in columns], device=device)


def _scale(group: GroupBatch, factors: Tensor | None) -> Tensor:
    values = group.features
    return values.new_ones(values.shape[-1]) if factors is None else factors.to(values.dtype)


def _limit(group: GroupBatch, scale: Tensor, options: AttackOptions) -> Tensor:
    values = group.features
    bound = scale * options.magnitude if options.magnitude > 0 else torch.full_like(scale, torch.inf)
    limit = bound.expand_as(values)
    return torch.minimum(limit, options.restrict_impact * values.abs()) if options.restrict_impact > 0 else limit


def _shared(inputs: ModelInputs, name: str, group: GroupBatch) -> tuple[int, ...]:
    if group.four_vectors is None:
        return ()
    place: Mapping[str, int] = {column: i for i, column in enumerate(group.columns)}
    return tuple(place.get(column, -1) for column in inputs.group(name).four_vectors)


def _vectors(group: GroupBatch, features: Tensor, shared: tuple[int, ...]) -> Tensor | None:
    vectors = group.four_vectors
    if vectors is None or all(i < 0 for i in shared):
        return vectors
    parts = [features[..., i] if i >= 0 else vectors[..., j] for j, i in enumerate(shared)]
    return torch.stack(parts, dim=-1)
