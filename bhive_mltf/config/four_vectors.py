"""Which four columns of a group are the four-vectors: by their names, not by their position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bhive_mltf.config.truths import Frozen

Kind = Literal["pxpypze", "ptetaphie"]

# Endings of the names, in the order of the columns; the energy is called e or energy.
COMPONENTS: Final[dict[Kind, tuple[str, str, str]]] = {
    "pxpypze": ("px", "py", "pz"),
    "ptetaphie": ("pt", "eta", "phi"),
}
ENERGIES: Final = ("energy", "e")


class FourVectors(Frozen):
    """The four-vectors of a group: GeV and radian, energy last."""

    kind: Kind
    columns: tuple[str, str, str, str]


@dataclass(frozen=True)
class Ambiguous:
    """Several sets of columns could be the four-vectors."""

    candidates: tuple[FourVectors, ...]

    def __str__(self) -> str:
        return " or ".join(", ".join(candidate.columns) for candidate in self.candidates)


def find(columns: Sequence[str]) -> FourVectors | Ambiguous | None:
    """Recognise the four-vectors among `columns` by name.

    A set is complete when four columns share a prefix that is not empty, and go on with px, py, pz or
    pt, eta, phi and with e or energy, in whatever order and place. One complete set is the answer; with
    several (both kinds, two prefixes) the names do not decide.
    """
    known = set(columns)
    found = []
    for kind, (first, second, third) in COMPONENTS.items():
        for column in columns:
            prefix = column.removesuffix(first)
            if prefix in ("", column):
                continue
            for energy in ENERGIES:
                names = (column, prefix + second, prefix + third, prefix + energy)
                if known.issuperset(names):
                    found.append(FourVectors(kind=kind, columns=names))
    if len(found) > 1:
        return Ambiguous(tuple(found))
    return found[0] if found else None
