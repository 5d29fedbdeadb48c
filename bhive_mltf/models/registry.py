"""The taggers by name. Light: a model's module, and torch with it, is imported when the model is made."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from bhive_mltf.errors import ModelError, nearest
from bhive_mltf.models.classes import HLT, JETCLASS, OFFLINE, OFFLINE_UD, Classes

if TYPE_CHECKING:
    from bhive_mltf.config import Config
    from bhive_mltf.models.base import Tagger


class Entry(NamedTuple):
    """Where a model is, and its classes."""

    module: str
    attribute: str
    classes: Classes


MODELS: dict[str, Entry] = {
    "DeepJet": Entry("bhive_mltf.models.deepjet", "DeepJet", OFFLINE_UD),
    "DeepJetHLT": Entry("bhive_mltf.models.deepjet", "DeepJetHLT", HLT),
    "ParticleTransformer2": Entry("bhive_mltf.models.part2", "ParticleTransformer2", OFFLINE),
    "ParticleTransformer2_JetClass": Entry("bhive_mltf.models.part2", "ParticleTransformer2_JetClass", JETCLASS),
    "ParticleTransformer_JetClass": Entry("bhive_mltf.models.part", "ParticleTransformer_JetClass", JETCLASS),
}

ABSENT = frozenset(
    {
        "MoDJet",
        "ParticleTransformer",
        "ParticleTransformer2_LT",
        "ParticleTransformer2_LT_tau_all",
        "ParticleTransformer2_LT_tau",
        "ParticleTransformer2_LT_tau_Big",
        "ParticleTransformer2_LT_tau_Huge",
        "ParticleTransformerHLT",
        "GlobalParticleTransformerHLT",
        "UParT_v0",
        "FP16ParticleTransformer",
        "DeepJetTransformer",
        "DeepJetTransformerHLT",
        "UDeepJetTransformerHLT",
        "GlobalDeepJetTransformerHLT",
        "ParticleNet",
        "ParticleNet_InPro",
        "ParticleNet_InProHLT",
        "UParticleNet_InProHLT",
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
    """Where a model is; ModelError for a name that is not in the table."""
    if name in MODELS:
        return MODELS[name]
    there = ", ".join(names())
    if name in ABSENT:
        msg = f"model {name!r} is one of B-Hive's that this package does not have; take one of: {there}"
    else:
        msg = f"there is no model {name!r} (nearest: {nearest(name, MODELS, 1)[0]}); take one of: {there}"
    raise ModelError(msg)


def classes(name: str) -> Classes:
    """Output classes of a model -> truth labels, ordered, as it declares them; without importing torch."""
    return entry(name).classes


def model_class(name: str) -> type[Tagger]:
    """The class of a model; imports torch."""
    found = entry(name)
    loaded: type[Tagger] = getattr(importlib.import_module(found.module), found.attribute)
    return loaded


def defaults(name: str) -> dict[str, Any]:
    """What `--model-kwargs` may set for a model, and the defaults; imports torch."""
    parameters = inspect.signature(model_class(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def create(name: str, config: Config, **kwargs: Any) -> Tagger:  # noqa: ANN401
    """Build a model for a config.

    Parameters
    ----------
    name : one of `names()`.
    kwargs : sizes of the model, see `defaults(name)`.

    Raises
    ------
    ModelError : unknown name or size, a size out of its range, or a config that the model cannot use.
    """
    known = defaults(name)
    for key in kwargs:
        if key not in known:
            valid = ", ".join(f"{option}={default!r}" for option, default in known.items())
            msg = (
                f"model {name} has no parameter {key!r} (nearest: {nearest(key, known, 1)[0]}); "
                f"those of --model-kwargs, with defaults: {valid}"
            )
            raise ModelError(msg)
    return model_class(name)(config, **kwargs)
