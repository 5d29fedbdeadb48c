"""Truth labels: which jets belong to a label, read from a config in both upstream forms.

A list names branches. A mapping gives each label a list of conditions, all of which must hold; a condition
is a branch with the values it may have, numbers or comparisons such as `{">": 0}`.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from bhive_mltf.config.settings import Settings, name, number, shown
from bhive_mltf.errors import ConfigError, MissingBranchError, nearest

Operator = Literal["==", "!=", ">", "<", ">=", "<="]

OPERATORS: Final[Mapping[Operator, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
FORM = "conditions of the form branch: [values]"


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


def read_truths(settings: Settings) -> tuple[Truth, ...]:
    """All labels in order."""
    value = settings.values.get("truths")
    if not isinstance(value, dict):
        return tuple(Truth(label=label, conditions=(is_set(label),)) for label in settings.distinct("truths"))
    return tuple(_read_truth(settings, name(key, settings.where("truths")), entry) for key, entry in value.items())


def _read_truth(settings: Settings, label: str, entry: object) -> Truth:
    where = settings.where("truths", label)
    if isinstance(entry, str):
        if entry.strip() not in ("", label):
            settings.warnings.append(
                f"{where}: the text {shown(entry)} means the branch {label} itself, as upstream; "
                f"for another branch write a list of {FORM}"
            )
        return Truth(label=label, conditions=(is_set(label),))
    if not isinstance(entry, list) or not entry:
        raise ConfigError(f"{where}: {shown(entry)} is not a list of {FORM}")
    return Truth(label=label, conditions=tuple(_read_condition(item, where) for item in entry))


def _read_condition(item: object, where: str) -> Condition:
    if isinstance(item, str):
        return is_set(name(item, where))
    if not isinstance(item, dict) or len(item) != 1:
        raise ConfigError(f"{where}: {shown(item)} is not one of the {FORM}; one branch per item")
    [(key, values)] = item.items()
    branch = name(key, where)
    if not isinstance(values, list):
        values = [values]
    if not values:
        raise ConfigError(f"{where}.{branch}: no values; list those that the branch may have")
    return Condition(branch=branch, any_of=tuple(_read_comparison(v, f"{where}.{branch}") for v in values))


def _read_comparison(value: object, where: str) -> Comparison:
    if not isinstance(value, dict):
        # A flag may be written as true or false.
        return Comparison(operator="==", value=number(int(value) if isinstance(value, bool) else value, where))
    if len(value) != 1:
        raise ConfigError(f"{where}: {shown(value)} is not one comparison; items of the list are joined by AND")
    [(symbol, limit)] = value.items()
    for known in OPERATORS:
        if symbol == known:
            return Comparison(operator=known, value=number(limit, where))
    raise ConfigError(f"{where}: {shown(symbol)} is not a comparison; there are {' '.join(OPERATORS)}")
