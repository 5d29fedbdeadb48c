"""Outputs of the taggers: class -> truth labels of the config, regression outputs. No torch: tasks read it too.

The label sets are those of B-Hive. Names of the light-quark labels differ between configs, see `SYNONYMS`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bhive_mltf.errors import ModelError, nearest

Classes = Mapping[str, tuple[str, ...]]

OFFLINE_UD: Classes = {
    "b": ("isB",),
    "bb": ("isBB", "isGBB"),
    "leptonicB": ("isLeptonicB", "isLeptonicB_C"),
    "c": ("isC", "isCC", "isGCC"),
    "uds": ("isUD", "isS"),
    "g": ("isG",),
}
"""Offline b tagging, up and down quarks in one label."""

OFFLINE: Classes = {**OFFLINE_UD, "uds": ("isU", "isD", "isS")}
"""Offline b tagging, up and down quarks in two labels."""

_TAU_DECAYS = ("1h0p_", "1h1p_", "1h2p_", "3h0p_", "3h1p_")
_TAU_PLUS = tuple(f"isTaup{decay}" for decay in _TAU_DECAYS)
_TAU_MINUS = tuple(f"isTaum{decay}" for decay in _TAU_DECAYS)
_FLAVOURS: Classes = {
    "b": ("isB", "isBB", "isGBB", "isLeptonicB", "isLeptonicB_C"),
    "c": ("isC", "isCC", "isGCC"),
    "uds": ("isU", "isD", "isS"),
    "g": ("isG",),
}

OFFLINE_TAUS: Classes = {**_FLAVOURS, "tau_p": _TAU_PLUS, "tau_m": _TAU_MINUS}
"""Offline, all b jets in one class, hadronic taus of both charges."""

OFFLINE_TAU: Classes = {**_FLAVOURS, "tau": (*_TAU_PLUS, *_TAU_MINUS)}
"""Offline, all b jets in one class, and all hadronic taus."""

HLT: Classes = {
    "b": ("label_b", "label_gbb", "label_bb", "label_leptonicb", "label_leptonicbc"),
    "c": ("label_c", "label_gcc", "label_cc"),
    "uds": ("label_ud", "label_s"),
    "g": ("label_g",),
    "taup": ("label_taup",),
    "taum": ("label_taum",),
}
"""Trigger, with hadronic taus of both charges."""

JETCLASS: Classes = {
    label: (label,)
    for label in (
        "label_QCD",
        "label_Hbb",
        "label_Hcc",
        "label_Hgg",
        "label_H4q",
        "label_Hqql",
        "label_Zqq",
        "label_Wqq",
        "label_Tbqq",
        "label_Tbl",
    )
}
"""The ten classes of the JetClass data set, each under the name of its label."""

OFFLINE_OUTPUTS = ("pt", "pt_q16", "pt_q84", "pt_with_neutrinos")
"""Regression outputs offline, as ratios to the pT of the jet (`models.regression`).

Of the visible particles: centre, 16 % and 84 % quantile; of all particles: centre.
"""

HLT_OUTPUTS = ("pt",)
"""The same of the trigger: of the visible particles; for a tau, of the visible part of its decay."""

SYNONYMS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("isUD",), ("isU", "isD")),
    (("isU", "isD"), ("isUD",)),
)
"""(labels of the model, labels of the config): used when the config has none of the first and all of the second."""


def resolve_classes(model: str, classes: Classes, truths: Collection[str], config: str) -> Classes:
    """The classes in the truth labels that the config has.

    Parameters
    ----------
    model, config : names, for the message.
    classes : as the model declares them.
    truths : labels of the config.

    Raises
    ------
    ModelError : a label that the config has neither under its name nor under a synonym.
    """
    return {name: _labels(model, name, labels, truths, config) for name, labels in classes.items()}


def _labels(model: str, name: str, labels: tuple[str, ...], truths: Collection[str], config: str) -> tuple[str, ...]:
    found = labels
    for theirs, ours in SYNONYMS:
        if set(theirs) <= set(found) and not set(theirs) & set(truths) and set(ours) <= set(truths):
            place = found.index(theirs[0])
            rest = tuple(label for label in found if label not in theirs)
            found = (*rest[:place], *ours, *rest[place:])
    missing = [label for label in found if label not in truths]
    if missing:
        msg = (
            f"model {model}: its class {name!r} is made of the truth labels {', '.join(labels)}, of which config "
            f"{config!r} does not have {', '.join(missing)} (nearest: {', '.join(nearest(missing[0], truths))}); "
            "take a config with these labels, or a model for the labels of this one"
        )
        raise ModelError(msg)
    return found
