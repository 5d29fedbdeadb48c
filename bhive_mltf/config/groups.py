"""Reading the groups of columns of a config."""

from __future__ import annotations

from bhive_mltf.config import four_vectors as fv
from bhive_mltf.config.expressions.expression import Expression
from bhive_mltf.config.keys import BRANCH_KEYS, CUSTOM_KEYS, FALLBACK_LENGTHS, LENGTH_KEYS
from bhive_mltf.config.schema import CustomFeature, Group, GroupName
from bhive_mltf.config.settings import Settings, check_known, name, shown
from bhive_mltf.errors import ConfigError, ExpressionError

# Numbers of candidates are stored in 16 bits.
MAX_LENGTH = 2**16 - 1


def read_groups(settings: Settings) -> tuple[Group, ...]:
    """All groups that have columns, in the order of storage."""
    groups = tuple(group for group in (_read_group(settings, key) for key in BRANCH_KEYS) if group)
    custom = {feature.name: group.name for group in groups for feature in group.custom}
    for group in groups:
        _check_names(settings, group, custom)
    given = settings.mapping("four_vectors")
    for key in given:
        check_known(str(key), [g.name for g in groups], settings.where("four_vectors"), "a group with columns")
    return tuple(_with_four_vectors(settings, group, given.get(group.name)) for group in groups)


def read_storage_order(settings: Settings, groups: tuple[Group, ...]) -> dict[str, tuple[str, ...]]:
    """Columns that lie next to each other in Arrow shards, per group of candidates."""
    columns = {group.name: group.columns for group in groups if group.name != "global"}
    result = {}
    for key, listed in settings.mapping("storage_order").items():
        check_known(str(key), columns, settings.where("storage_order"), "a group of candidates with columns")
        where = settings.where("storage_order", key)
        if not isinstance(listed, list):
            raise ConfigError(f"{where}: {shown(listed)} is not a list of columns")
        names = tuple(name(value, where) for value in listed)
        for column in names:
            check_known(column, columns[key], where, "a column of the group")
        if len(set(names)) < len(names):
            raise ConfigError(f"{where}: a column is listed more than once")
        result[str(key)] = names
    return result


def _read_group(settings: Settings, group: GroupName) -> Group | None:
    plain = settings.distinct(BRANCH_KEYS[group])
    custom = _read_custom(settings, group, plain)
    length = 1 if group == "global" else settings.count(LENGTH_KEYS[group], MAX_LENGTH, FALLBACK_LENGTHS[group])
    if not plain and not custom:
        return None
    if length == 0:
        raise ConfigError(
            f"{settings.where(LENGTH_KEYS[group])}: 0 candidates, but {len(plain) + len(custom)} columns of the group "
            f"{group} are listed; set {LENGTH_KEYS[group]} to the number to keep, or remove the columns"
        )
    return Group(name=group, plain=plain, custom=custom, length=length)


def _read_custom(settings: Settings, group: GroupName, plain: tuple[str, ...]) -> tuple[CustomFeature, ...]:
    key = CUSTOM_KEYS[group]
    features: dict[str, CustomFeature] = {}
    for item in settings.items(key):
        if not isinstance(item, dict) or len(item) != 1:
            raise ConfigError(f'{settings.where(key)}: {shown(item)} is not of the form newname: "expression"')
        [(raw_name, text)] = item.items()
        feature = name(raw_name, settings.where(key))
        if feature in plain:
            raise ConfigError(f"{settings.where(key)}: {feature} is a branch of {BRANCH_KEYS[group]} too; rename it")
        if feature in features:
            raise ConfigError(f"{settings.where(key)}: listed more than once: {feature}")
        where = settings.where(key, feature)
        if not isinstance(text, str):
            raise ExpressionError(f"{where}: {shown(text)} is not text; write an expression of branches in quotes")
        features[feature] = CustomFeature(name=feature, expression=Expression.parse(text, where).text)
    return tuple(features.values())


def _check_names(settings: Settings, group: Group, custom: dict[str, GroupName]) -> None:
    """Custom features may use branches and the custom features above them, of their own group."""
    earlier: set[str] = set()
    for feature in group.custom:
        for used in sorted(feature.parse().names - earlier - set(group.plain)):
            where = settings.where(CUSTOM_KEYS[group.name], feature.name)
            if used in {f.name for f in group.custom}:
                raise ExpressionError(f"{where}: uses {used}, which is not defined above it; change the order")
            if used in custom:
                raise ExpressionError(
                    f"{where}: uses {used}, a custom feature of the group {custom[used]}; "
                    f"define it in {CUSTOM_KEYS[group.name]} too, under another name"
                )
        earlier.add(feature.name)


def _with_four_vectors(settings: Settings, group: Group, given: object) -> Group:
    if given is not None:
        return group.model_copy(update={"four_vectors": _read_four_vectors(settings, group, given)})
    found = fv.find(group.columns)
    if len(found) == 1:
        return group.model_copy(update={"four_vectors": found[0]})
    listed = " or ".join(", ".join(candidate.columns) for candidate in found)
    problem = f"several sets of columns could be the four-vectors: {listed}"
    if not found:
        problem = "no four columns share a prefix and end in px, py, pz, e(nergy) or in pt, eta, phi, e(nergy)"
    advice = f"name them in the config with four_vectors: {{{group.name}: {{kind: ..., columns: [...]}}}}"
    return group.model_copy(
        update={"four_vectors_problem": f"config {settings.source}, group {group.name}: {problem}; {advice}"}
    )


def _read_four_vectors(settings: Settings, group: Group, given: object) -> fv.FourVectors:
    where = settings.where("four_vectors", group.name)
    if not isinstance(given, dict) or given.keys() != {"kind", "columns"}:
        raise ConfigError(f"{where}: {shown(given)} is not of the form {{kind: pxpypze, columns: [4 names]}}")
    for kind in fv.COMPONENTS:
        if given["kind"] == kind:
            break
    else:
        raise ConfigError(f"{where}.kind: there is no {shown(given['kind'])}; there are {', '.join(fv.COMPONENTS)}")
    where += ".columns"
    columns = given["columns"] if isinstance(given["columns"], list) else []
    names = [name(column, where) for column in columns]
    if len(names) != 4 or len(set(names)) != 4:
        raise ConfigError(f"{where}: {shown(given['columns'])} is not a list of four different columns")
    for column in names:
        check_known(column, group.columns, where, f"a column of the group {group.name}")
    first, second, third, energy = names
    return fv.FourVectors(kind=kind, columns=(first, second, third, energy))
