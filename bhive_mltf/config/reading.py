"""From the settings of a YAML file to a checked config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bhive_mltf.config.groups import read_groups, read_storage_order
from bhive_mltf.config.keys import BRANCH_KEYS, KNOWN
from bhive_mltf.config.schema import Config, Group, Layout, Precision, ProcessCuts
from bhive_mltf.config.settings import Settings, check_known, number, shown
from bhive_mltf.config.truths import read_truths
from bhive_mltf.errors import ConfigError

_FLOAT32_MAX = 3.4028234663852886e38
DEFAULT_PROCESS = "default"
LAYOUTS: Final[tuple[Layout, ...]] = ("ArrowDataset", "LZ4Dataset")
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "float16")
LIMITS = tuple(ProcessCuts.model_fields)


def build(settings: Settings) -> Config:
    """The config that the settings describe.

    The base of all others, `default.yml`, may leave out what has no default; any other config may not.

    Raises
    ------
    ConfigError
        Something in it cannot be; the message names file, key and what exists.
    """
    processes = _read_processes(settings)
    cuts = _read_cuts(settings, processes)
    groups = read_groups(settings)
    truths = read_truths(settings)
    reference = settings.text("reference_flavour", "")
    if reference:
        labels = [truth.label for truth in truths]
        check_known(reference, labels, settings.where("reference_flavour"), "a label of truths")
    config = Config(
        name=settings.name,
        source=settings.source,
        treename=settings.text("treename", ""),
        bins_pt=settings.edges("bins_pt"),
        bins_eta=settings.edges("bins_eta"),
        processes=processes,
        process_cuts=cuts,
        process_weights=_read_weights(settings, processes),
        groups=groups,
        truths=truths,
        reference_flavour=reference,
        pt_key=settings.text("pt_key", "jet_pt"),
        eta_key=settings.text("eta_key", "jet_eta"),
        processor=settings.choice("processor", ("LZ4Processing", "PFCandidateAndVertexProcessing"), "LZ4Processing"),
        dataset=_read_layout(settings),
        data_precision=settings.choice("data_precision", PRECISIONS, "float32"),
        compression=settings.choice("compression", ("none", "lz4", "zstd"), "none"),
        storage_order=read_storage_order(settings, groups),
        non_finite=_read_non_finite(settings, groups),
        warnings=tuple(settings.warnings),
    )
    if settings.name != "default" or config.treename:
        _check_complete(settings, config)
    return config


def _read_layout(settings: Settings) -> Layout:
    """What is written. Upstream's float16 files lose their own number of rows: Arrow shards take their place."""
    layout = settings.choice("dataset", LAYOUTS, "LZ4Dataset")
    if layout == "LZ4Dataset" and settings.choice("data_precision", PRECISIONS, "float32") == "float16":
        settings.warnings.append(
            f"{settings.where('data_precision')}: training sets are written as ArrowDataset, since files of LZ4Dataset "
            "in float16 cannot hold their own number of rows above 2048; such files of B-Hive are read"
        )
        return "ArrowDataset"
    return layout


def _read_non_finite(settings: Settings, groups: Sequence[Group]) -> dict[str, float]:
    """What NaN and infinity become, by column."""
    columns = [column for group in groups for column in group.columns]
    result = {}
    for key, value in settings.mapping("non_finite").items():
        where = settings.where("non_finite", key)
        check_known(str(key), columns, settings.where("non_finite"), "a column of a group")
        result[str(key)] = number(value, where)
        if abs(result[str(key)]) > _FLOAT32_MAX:
            raise ConfigError(f"{where}: {shown(value)} is not a number that float32 can hold")
    return result


def _read_processes(settings: Settings) -> tuple[str, ...]:
    if "processes" not in settings.values:
        return (DEFAULT_PROCESS,)
    names = settings.names("processes")
    if not names:
        raise ConfigError(f"{settings.where('processes')}: the list is empty; name processes, or remove the key")
    processes = tuple(dict.fromkeys(names))
    if len(processes) < len(names):
        twice = ", ".join(process for process in processes if names.count(process) > 1)
        settings.warnings.append(f"{settings.where('processes')}: listed more than once: {twice}")
    return processes


def _read_cuts(settings: Settings, processes: tuple[str, ...]) -> dict[str, ProcessCuts]:
    """Keys that are no settings: cuts of processes, or what nothing reads.

    Without `processes`, as in upstream's own configs, blocks of cuts are those of processes that may be named later.
    """
    cuts = {}
    for key in settings.values:
        if key in KNOWN:
            continue
        if key in processes or (processes == (DEFAULT_PROCESS,) and _are_limits(settings.values[key])):
            cuts[key] = _read_limits(settings, key)
        else:
            what = "a key of a config, and not one of processes"
            settings.unknown(key, [*KNOWN, *processes], settings.where(key), what)
    return cuts


def _are_limits(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and set(value) <= set(LIMITS)


def _read_limits(settings: Settings, process: str) -> ProcessCuts:
    limits = {}
    for key, value in settings.mapping(process).items():
        if str(key) not in LIMITS:
            settings.unknown(str(key), LIMITS, settings.where(process), "a cut of a process")
            continue
        limits[str(key)] = None if value is None else number(value, settings.where(process, key))
    cuts = ProcessCuts(**limits)
    for quantity, low, high in (("pt", cuts.pt_min, cuts.pt_max), ("eta", cuts.eta_min, cuts.eta_max)):
        if low is not None and high is not None and not low < high:
            raise ConfigError(f"{settings.where(process)}: {quantity}_min {low:g} is not below {quantity}_max {high:g}")
    return cuts


def _read_weights(settings: Settings, processes: tuple[str, ...]) -> dict[str, float]:
    weights = {}
    for key, value in settings.mapping("process_weights").items():
        check_known(str(key), processes, settings.where("process_weights"), "one of processes")
        weight = number(value, settings.where("process_weights", key))
        if weight < 0:
            raise ConfigError(f"{settings.where('process_weights', key)}: the weight {weight:g} is negative")
        weights[str(key)] = weight
    if weights and not any(weights.get(process, 1.0) for process in processes):
        raise ConfigError(f"{settings.where('process_weights')}: all weights are 0; no jet would be used")
    return weights


def _check_complete(settings: Settings, config: Config) -> None:
    missing = [key for key in ("treename", "bins_pt", "bins_eta", "truths") if not getattr(config, key)]
    if missing:
        raise ConfigError(f"config {config.source}: the key {missing[0]} is missing or empty; set it")
    names = next((group.plain for group in config.groups if group.name == "global"), ())
    for key, branch in (("pt_key", config.pt_key), ("eta_key", config.eta_key)):
        check_known(branch, names, settings.where(key), f"in {BRANCH_KEYS['global']}, which must list it")


def with_reference(config: Config, flavour: str) -> Config:
    """`config` with another reference flavour; unchanged for an empty `flavour`.

    Raises
    ------
    ConfigError
        No truth label is called so.
    """
    if not flavour:
        return config
    if flavour not in config.labels:
        labels = ", ".join(config.labels) or "none"
        raise ConfigError(
            f"config {config.source}: the reference flavour {flavour} is no truth label; there are {labels}"
        )
    return config.model_copy(update={"reference_flavour": flavour})
