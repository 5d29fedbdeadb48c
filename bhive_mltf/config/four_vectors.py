"""Which four columns of a group are the four-vectors: by their names, not by their position."""

from __future__ import annotations

from collections.abc import Sequence
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


def find(columns: Sequence[str]) -> list[FourVectors]:
    """The sets of `columns` that are four-vectors by their names.

    A set is complete when four columns share a prefix that is not empty, and go on with px, py, pz or
    pt, eta, phi and with e or energy, in whatever order and place. With several complete sets (both kinds, two
    prefixes) the names do not decide.
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
    return found
