"""What data and models agree on: the columns that a model asks for, and the batches that it gets.

No torch here: the loader's processes read it too. B: jets of this rank; N: candidates, padding included; F: columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Padding = Literal["longest", "configured"]


@dataclass(frozen=True)
class GroupInput:
    """One group of inputs of a model.

    name : group of the config (`global`, `cpf`, `npf`, `vtx`, `lt`).
    columns : columns that become `features`, in this order.
    length : candidates per jet at most; 1 for `global`.
    four_vectors : the four columns of the four-vectors, in the order of their kind; empty if not asked for.
    kind : "pxpypze" or "ptetaphie"; what the four columns are.
    """

    name: str
    columns: tuple[str, ...]
    length: int
    four_vectors: tuple[str, ...] = ()
    kind: Literal["pxpypze", "ptetaphie", ""] = ""


@dataclass(frozen=True)
class ModelInputs:
    """All that the loader must know of a model.

    classes : ordered, class -> truth labels; a jet belongs to the last class that has one of its labels.
    padding : `longest` of the global batch, or always the `configured` length.
    """

    classes: tuple[tuple[str, tuple[str, ...]], ...]
    groups: tuple[GroupInput, ...]
    padding: Padding

    def group(self, name: str) -> GroupInput:
        """The group called `name`; KeyError if the model does not read it."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


@dataclass(frozen=True)
class GroupBatch:
    """One group of inputs.

    features : float [B,N,F], zero where padded; the group `global` has N = 1.
    mask : bool [B,N], True for a real candidate.
    columns : names of the F columns.
    four_vectors : float [B,N,4] in the order of the config's `four_vectors`, or None.
    counts : int64 [B], on the host: candidates of each jet, which are then the first ones of its N; None where the
        mask alone says which are real. A model that has them need not wait for the device.
    """

    features: Tensor
    mask: Tensor
    columns: tuple[str, ...]
    four_vectors: Tensor | None = None
    counts: NDArray[np.int64] | None = None

    def counted(self) -> GroupBatch:
        """The same candidates with `counts`; where they are not known, a GPU is waited for."""
        if self.counts is not None:
            return self
        first = self.mask.int().argsort(dim=1, descending=True, stable=True)

        def sorted_by_jet(values: Tensor) -> Tensor:
            return values.take_along_dim(first[..., None], 1)

        return replace(
            self,
            features=sorted_by_jet(self.features),
            mask=self.mask.take_along_dim(first, 1),
            four_vectors=None if self.four_vectors is None else sorted_by_jet(self.four_vectors),
            counts=self.mask.sum(1).cpu().numpy(),
        )


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch.

    groups : by name, those that the model asked for.
    target : int64 [B], index of the model's class, -1 for a jet in none of them.
    weight : float32 [B], how much the jet counts in loss and accuracy.
    jet_id : int64 [B,2], (index of the source file in the manifest, entry).
    process : int64 [B].
    kinematics : float32 [B,2], (pt, eta).
    global_size : jets of the whole global batch, all ranks together.
    """

    groups: Mapping[str, GroupBatch]
    target: Tensor
    weight: Tensor
    jet_id: Tensor
    process: Tensor
    kinematics: Tensor
    global_size: int

    def __len__(self) -> int:
        return int(self.target.shape[0])

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `function` applied to each tensor (to another device, say)."""
        groups = {
            name: replace(
                group,
                features=function(group.features),
                mask=function(group.mask),
                four_vectors=None if group.four_vectors is None else function(group.four_vectors),
            )
            for name, group in self.groups.items()
        }
        return replace(
            self,
            groups=groups,
            target=function(self.target),
            weight=function(self.weight),
            jet_id=function(self.jet_id),
            process=function(self.process),
            kinematics=function(self.kinematics),
        )
