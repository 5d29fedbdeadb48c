"""What a training set holds: groups of columns, truth labels, processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bhive_mltf.config import Config

GLOBAL = "global"
CANDIDATE_GROUPS = ("cpf", "npf", "vtx", "lt")


@dataclass(frozen=True)
class GroupSchema:
    """One group: the jet itself (`global`) or one kind of candidate.

    `length` is the number of candidates kept per jet, 1 for `global`.
    """

    name: str
    columns: tuple[str, ...]
    length: int


@dataclass(frozen=True)
class Schema:
    """Groups in storage order (global, cpf, npf, vtx, lt; those without columns left out)."""

    groups: tuple[GroupSchema, ...]
    truths: tuple[str, ...]
    processes: tuple[str, ...]
    pt_key: str = "jet_pt"
    eta_key: str = "jet_eta"

    def group(self, name: str) -> GroupSchema:
        """The group called `name`; KeyError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def candidate_groups(self) -> tuple[GroupSchema, ...]:
        """All groups but the jet itself."""
        return tuple(group for group in self.groups if group.name != GLOBAL)

    @classmethod
    def of(cls, config: Config) -> Schema:
        """The schema of the training set that `config` describes."""
        return cls(
            groups=tuple(GroupSchema(g.name, g.columns, g.length) for g in config.groups),
            truths=tuple(truth.label for truth in config.truths),
            processes=tuple(config.processes),
            pt_key=config.pt_key,
            eta_key=config.eta_key,
        )
