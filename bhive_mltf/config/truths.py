"""Truth labels: which jets belong to a label."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from bhive_mltf.errors import MissingBranchError, nearest

Operator = Literal["==", "!=", ">", "<", ">=", "<="]

OPERATORS: Final[Mapping[Operator, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


class Frozen(BaseModel):
    """Data of a config: cannot be changed, and has no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Comparison(Frozen):
    """A branch compared with a number; NaN satisfies none."""

    operator: Operator
    value: float


class Condition(Frozen):
    """One branch that satisfies any of the comparisons."""

    branch: str
    any_of: tuple[Comparison, ...]

    def evaluate(self, values: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Bool [J] for branches of shape [J]."""
        array = np.asarray(values[self.branch])
        result = np.zeros(array.shape, np.bool_)
        for comparison in self.any_of:
            result |= OPERATORS[comparison.operator](array, comparison.value)
        if array.dtype.kind == "f":
            result &= ~np.isnan(array)
        return result


class Truth(Frozen):
    """A label: true for the jets that satisfy all conditions."""

    label: str
    conditions: tuple[Condition, ...]

    @property
    def branches(self) -> tuple[str, ...]:
        """Branches that the conditions read, each once, in order."""
        return tuple(dict.fromkeys(condition.branch for condition in self.conditions))

    def meaning(self) -> dict[str, Any]:
        """Label and conditions without their order and repetitions, which change no jet; for digests."""
        conditions = []
        for condition in self.conditions:
            choices = sorted({(one.operator, one.value) for one in condition.any_of})
            any_of = [{"operator": operator, "value": value} for operator, value in choices]
            conditions.append({"branch": condition.branch, "any_of": any_of})
        distinct = {json.dumps(content, sort_keys=True): content for content in conditions}
        return {"label": self.label, "conditions": [distinct[key] for key in sorted(distinct)]}

    def evaluate(self, values: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Which jets have the label.

        Parameters
        ----------
        values : branch -> array [J], at least the `branches`.

        Returns
        -------
        bool [J]

        Raises
        ------
        MissingBranchError
            A branch has no array.
        """
        for branch in self.branches:
            if branch not in values:
                near = ", ".join(nearest(branch, values))
                raise MissingBranchError(f"truth {self.label}: there is no branch `{branch}`; nearest: {near}")
        result, *others = (condition.evaluate(values) for condition in self.conditions)
        for other in others:
            result &= other
        return result


def is_set(branch: str) -> Condition:
    """The condition that `branch` is not 0."""
    return Condition(branch=branch, any_of=(Comparison(operator="!=", value=0.0),))
