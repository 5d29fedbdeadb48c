"""From what a model asks for to the columns of one config. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bhive_mltf.errors import ModelError, nearest
from bhive_mltf.interface import GroupInput, ModelInputs, Padding
from bhive_mltf.models.classes import Classes, resolve_classes

if TYPE_CHECKING:
    from bhive_mltf.config import Config, Group

GLOBAL = "global"
SHOWN = 4
"""Missing columns that a message spells out."""


@dataclass(frozen=True)
class GroupRequest:
    """What a model asks of one group of the config.

    name : `global`, `cpf`, `npf`, `vtx` or `lt`.
    columns : in this order; None for all columns of the config in its order. An entry may list several names of
        the same column: the first that the config has is taken.
    length : candidates wanted; None for the config's. Fewer than the config's: the last ones are cut off.
    four_vectors : the model also needs the four-vectors; they are then no part of `columns` = None.
    optional : the model can do without the group.
    """

    name: str
    columns: tuple[str | tuple[str, ...], ...] | None = None
    length: int | None = None
    four_vectors: bool = False
    optional: bool = False


def resolve_inputs(
    model: str, config: Config, classes: Classes, requests: Sequence[GroupRequest], padding: Padding
) -> ModelInputs:
    """What the loader has to deliver to `model` from a data set of `config`.

    Raises
    ------
    ModelError : groups, columns, four-vectors or truth labels that the config does not have.
    """
    groups = {group.name: group for group in config.groups}
    inputs = []
    for request in requests:
        if request.name in groups:
            inputs.append(_group_input(model, config, groups[request.name], request))
        elif not request.optional:
            msg = (
                f"model {model} needs the group {request.name!r}, which config {config.name!r} does not have or "
                f"gives no candidates (it has: {', '.join(groups) or 'none'}); take another config or model"
            )
            raise ModelError(msg)
    resolved = resolve_classes(model, classes, [truth.label for truth in config.truths], config.name)
    return ModelInputs(classes=tuple(resolved.items()), groups=tuple(inputs), padding=padding)


def _group_input(model: str, config: Config, group: Group, request: GroupRequest) -> GroupInput:
    length = 1 if group.name == GLOBAL else min(group.length, request.length or group.length)
    if not request.four_vectors:
        return GroupInput(group.name, _columns(model, config, group, request, ()), length)
    vectors = group.four_vectors
    if vectors is None:
        problem = group.four_vectors_problem or f"config {config.name}, group {group.name}: there are none"
        msg = (
            f"model {model} needs four-vectors; {problem}, such as four_vectors: "
            f"{{{group.name}: {{kind: pxpypze, columns: [PX, PY, PZ, ENERGY]}}}} (or kind: ptetaphie with pT, eta, "
            f"phi, energy) with four of the columns {', '.join(group.columns)}"
        )
        raise ModelError(msg)
    columns = _columns(model, config, group, request, tuple(vectors.columns))
    return GroupInput(group.name, columns, length, tuple(vectors.columns), vectors.kind)


def _columns(
    model: str, config: Config, group: Group, request: GroupRequest, without: tuple[str, ...]
) -> tuple[str, ...]:
    if request.columns is None:
        return tuple(column for column in group.columns if column not in without)
    found: list[str] = []
    missing: list[str] = []
    for wanted in request.columns:
        names = (wanted,) if isinstance(wanted, str) else wanted
        there = [name for name in names if name in group.columns]
        (found if there else missing).append(there[0] if there else names[0])
    if missing:
        hints = ", ".join(f"{name} (nearest: {nearest(name, group.columns)[0]})" for name in missing[:SHOWN])
        hints += f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        msg = (
            f"model {model} reads columns of the group {group.name!r} that config {config.name!r} does not have: "
            f"{hints}; add them to the config or take another model"
        )
        raise ModelError(msg)
    return tuple(found)
