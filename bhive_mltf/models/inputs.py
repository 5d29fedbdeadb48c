"""What a model reads: groups, columns, candidates, four-vectors. No torch here: the loader reads it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
