"""Reading the truth labels of a config, in both upstream forms.

A list names branches. A mapping gives each label a list of conditions, all of which must hold; a condition
is a branch with the values it may have, numbers or comparisons such as `{">": 0}`.
"""

from __future__ import annotations

from bhive_mltf.config.settings import Settings, name, number, shown
from bhive_mltf.config.truths import OPERATORS, Comparison, Condition, Truth, is_set
from bhive_mltf.errors import ConfigError

FORM = "conditions of the form branch: [values]"


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
    for operator in OPERATORS:
        if symbol == operator:
            return Comparison(operator=operator, value=number(limit, where))
    raise ConfigError(f"{where}: {shown(symbol)} is not a comparison; there are {' '.join(OPERATORS)}")
