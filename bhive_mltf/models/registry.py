"""The taggers by name. Light: a model's module, and torch with it, is imported when the model is made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from bhive_mltf.errors import ModelError, nearest
from bhive_mltf.models import external
from bhive_mltf.models.classes import (
    HLT,
    HLT_OUTPUTS,
    JETCLASS,
    OFFLINE,
    OFFLINE_OUTPUTS,
    OFFLINE_TAU,
    OFFLINE_TAUS,
    OFFLINE_UD,
    Classes,
)

if TYPE_CHECKING:
    from torch import nn

    from bhive_mltf.config import Config
    from bhive_mltf.models.base import Tagger


class Entry(NamedTuple):
    """Where a model is, and what can be said of it without importing it.

    classes : None where only its module knows them.
    sizes : parameters of its class whose defaults differ for this model.
    regression : names of its regression outputs, None where only its module knows them.
    function : newest version of its function, above 1 once equal weights have given other logits. Checkpoints record
        theirs, and keep it. The class of a model with several takes `function_version`.
    """

    module: str
    attribute: str
    classes: Classes | None
    sizes: Mapping[str, Any] = {}
    regression: tuple[str, ...] | None = ()
    function: int = 1


_PACKAGE = "bhive_mltf.models"
_DEEPJET, _TRANSFORMER, _NET = f"{_PACKAGE}.deepjet", f"{_PACKAGE}.deepjet_transformer", f"{_PACKAGE}.particle_net"
_PART, _PART1, _PART2 = f"{_PACKAGE}.part.jetclass", f"{_PACKAGE}.part.v1", f"{_PACKAGE}.part.v2"
_BIG = {"embed_dim": 192, "num_layers": 6, "num_cls_layers": 2}

MODELS: dict[str, Entry] = {
    "DeepJet": Entry(_DEEPJET, "DeepJet", OFFLINE_UD),
    "DeepJetHLT": Entry(_DEEPJET, "DeepJetHLT", HLT),
    "MoDJet": Entry(_DEEPJET, "MoDJet", OFFLINE),
    "DeepJetTransformer": Entry(_TRANSFORMER, "DeepJetTransformer", OFFLINE_UD, function=2),
    "DeepJetTransformerHLT": Entry(_TRANSFORMER, "DeepJetTransformerHLT", HLT, function=2),
    "GlobalDeepJetTransformerHLT": Entry(_TRANSFORMER, "GlobalDeepJetTransformerHLT", HLT, function=2),
    "UDeepJetTransformerHLT": Entry(_TRANSFORMER, "UDeepJetTransformerHLT", HLT, regression=HLT_OUTPUTS, function=2),
    "ParticleTransformer": Entry(_PART1, "ParticleTransformer", OFFLINE),
    "ParticleTransformerHLT": Entry(_PART1, "ParticleTransformerHLT", HLT),
    "GlobalParticleTransformerHLT": Entry(_PART1, "GlobalParticleTransformerHLT", HLT),
    "UParT_v0": Entry(_PART1, "UParT_v0", OFFLINE, regression=OFFLINE_OUTPUTS),
    "ParticleTransformer2": Entry(_PART2, "ParticleTransformer2", OFFLINE),
    "ParticleTransformer2_LT": Entry(_PART2, "ParticleTransformer2_LT", OFFLINE),
    "ParticleTransformer2_LT_tau": Entry(_PART2, "ParticleTransformer2_LT_tau", OFFLINE_TAUS),
    "ParticleTransformer2_LT_tau_all": Entry(_PART2, "ParticleTransformer2_LT_tau_all", OFFLINE_TAU),
    "ParticleTransformer2_LT_tau_Big": Entry(_PART2, "ParticleTransformer2_LT_tau", OFFLINE_TAUS, _BIG),
    "ParticleTransformer2_LT_tau_Huge": Entry(
        _PART2, "ParticleTransformer2_LT_tau", OFFLINE_TAUS, {**_BIG, "num_layers": 12}
    ),
    "ParticleTransformer2_JetClass": Entry(_PART2, "ParticleTransformer2_JetClass", JETCLASS),
    "ParticleTransformer_JetClass": Entry(_PART, "ParticleTransformer_JetClass", JETCLASS),
    "ParticleNet_InPro": Entry(_NET, "ParticleNet_InPro", OFFLINE, function=2),
    "ParticleNet_InProHLT": Entry(_NET, "ParticleNet_InProHLT", HLT, function=2),
    "UParticleNet_InProHLT": Entry(_NET, "UParticleNet_InProHLT", HLT, regression=HLT_OUTPUTS, function=2),
}

ABSENT = frozenset(
    {
        "FP16ParticleTransformer",
        "ParticleNet",
        "ParticleNetHION",
        "L1TKerasDeepSet",
        "L1TTorchBase",
        "LZ4PAIReDTagger",
        "DeepJet_PAIReD",
    }
)
"""Models of B-Hive that this package does not have."""


def names() -> tuple[str, ...]:
    """All models, sorted."""
    return tuple(sorted(MODELS))


def entry(name: str) -> Entry:
    """Where a model is: in the table, or in another package (`models.external`), which is not imported here.

    ModelError for a name that is neither.
    """
    if name in MODELS:
        return MODELS[name]
    if ":" in name:
        return Entry(*external.locate(name), classes=None, regression=None)
    if name in ABSENT:
        msg = f"model {name!r} is one of B-Hive's that this package does not have; take one of: {', '.join(names())}"
        raise ModelError(msg)
    installed = external.installed()
    if name in installed:
        return Entry(*external.locate(installed[name]), classes=None, regression=None)
    there = (*names(), *installed)
    msg = (
        f"there is no model {name!r} (nearest: {nearest(name, there, 1)[0]}); take one of: {', '.join(there)}; or a "
        "class of another package as package.module:Class"
    )
    raise ModelError(msg)


def classes(name: str) -> Classes:
    """Output classes of a model -> truth labels, ordered, as it declares them; a foreign model is imported for that."""
    declared = entry(name).classes
    return declared if declared is not None else dict(getattr(model_class(name), "classes", {}))


def model_class(name: str) -> type[nn.Module]:
    """The class of a model, a `Tagger` or a module of B-Hive's kind; imports torch."""
    found = entry(name)
    return external.load(name, found.module, found.attribute)


def defaults(name: str) -> dict[str, Any]:
    """What `--model-kwargs` may set for a model, and the defaults; imports torch."""
    return _options(name)[0]


def _options(name: str) -> tuple[dict[str, Any], bool]:
    """The same, and whether the model takes any other parameter too."""
    from bhive_mltf.models.base import Tagger

    found = model_class(name)
    if not issubclass(found, Tagger):
        return external.options(found)
    parameters = inspect.signature(found).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    own.pop("function_version", None)
    return {**own, **entry(name).sizes}, False


def create(name: str, config: Config, *, function_version: int | None = None, **kwargs: Any) -> Tagger:  # noqa: ANN401
    """Build a model for a config.

    Parameters
    ----------
    name : one of `names()`, an entry point, or `package.module:Class`.
    function_version : of what it computes, that which a checkpoint records; None for the newest.
    kwargs : sizes of the model, see `defaults(name)`.

    Raises
    ------
    ModelError : unknown name, size or version, a size out of its range, or a config that the model cannot use.
    """
    from bhive_mltf.models.base import Tagger
    from bhive_mltf.models.upstream import adapt

    known, takes_all = _options(name)
    for key in kwargs:
        if key not in known and not takes_all:
            valid = ", ".join(f"{option}={default!r}" for option, default in known.items())
            hint = f" (nearest: {nearest(key, known, 1)[0]})" if known else ""
            msg = f"model {name} has no parameter {key!r}{hint}; those of --model-kwargs, with defaults: {valid or '-'}"
            raise ModelError(msg)
    newest = entry(name).function
    version = newest if function_version is None else function_version
    if not 1 <= version <= newest:
        msg = (
            f"model {name}: version {version} of its function is asked for, this package has 1 to {newest}: take the "
            "version of the package that trained it, or a newer one"
        )
        raise ModelError(msg)
    found, sizes = model_class(name), {**entry(name).sizes, **kwargs}
    if newest > 1:
        sizes["function_version"] = version
    return found(config, **sizes) if issubclass(found, Tagger) else adapt(found, config, **sizes)
