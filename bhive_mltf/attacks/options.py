"""What an attack is asked to do. No torch here: tasks and plans check it at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from bhive_mltf.errors import ParameterError

NOMINAL = "nominal"
ATTACKS = (NOMINAL, "pgd", "jetfool", "optimizer")


@dataclass(frozen=True)
class AttackOptions:
    """Upstream's eight parameters of an attack; see docs/attacks.md.

    attack : one of ATTACKS.
    magnitude : largest change of a feature, times its factor; 0 means none for pgd, no limit for the others.
    iterations : steps of the attack.
    individual_factors : the factor of a feature is its standard deviation in the data set, else 1.
    reduce : leave integer features and zeros as they are.
    restrict_impact : largest change of a feature as a fraction of its value; -1 for no limit.
    overshoot : of jetfool, how far to go beyond the boundary between two classes, as a fraction of the way.
    uncertainty : of optimizer, the standard deviation that changes have before they cost anything, times the factor.

    """

    attack: str = NOMINAL
    magnitude: float = 0.0
    iterations: int = 1
    individual_factors: bool = False
    reduce: bool = True
    restrict_impact: float = -1.0
    overshoot: float = 0.02
    uncertainty: float = 1.0

    @classmethod
    def of(cls, holder: object, prefix: str = "attack") -> AttackOptions:
        """From attributes `attack`, `attack_magnitude`, ... or with prefix `test_attack`; checked.

        Raises
        ------
        ParameterError : one sentence that names the attribute.
        """
        options = cls(getattr(holder, prefix), **{name: getattr(holder, f"{prefix}_{name}") for name in SETTINGS})
        options.check(prefix)
        return options

    def check(self, prefix: str = "attack") -> None:
        """Refuse what cannot be: ParameterError, one sentence that names the setting."""
        if self.attack not in ATTACKS:
            raise ParameterError(f"{prefix} is {self.attack!r}, but must be one of {', '.join(ATTACKS)}")
        for field, holds, requirement in _RANGES:
            value: Any = getattr(self, field)
            if not holds(value):
                raise ParameterError(f"{prefix}_{field} is {value!r}, but must be {requirement}")
        if self.attack == "pgd" and self.magnitude == 0:
            raise ParameterError(f"{prefix}_magnitude is 0, but must be above 0 for pgd, which else changes nothing")

    @property
    def is_nominal(self) -> bool:
        """True if inputs stay as they are."""
        return self.attack == NOMINAL


SETTINGS = tuple(field.name for field in fields(AttackOptions))[1:]
"""What an attack has besides its name."""

_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("magnitude", lambda x: 0 <= x < math.inf, "0 or more"),
    ("iterations", lambda n: n >= 1, "at least 1"),
    ("restrict_impact", lambda x: x == -1 or 0 < x < math.inf, "-1 (no limit) or above 0"),
    ("overshoot", lambda x: 0 <= x < math.inf, "0 or more"),
    ("uncertainty", lambda x: 0 < x < math.inf, "above 0"),
)
