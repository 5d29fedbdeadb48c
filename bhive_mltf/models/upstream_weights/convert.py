"""From the weights of B-Hive's model classes to ours, and back.

Optimisers are not converted. What B-Hive's classes have and never use (a spare encoder layer, batch norms behind the
last convolutions) is left out, and made up on the way back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from bhive_mltf.errors import ModelError
from bhive_mltf.models import registry
from bhive_mltf.models.upstream_weights import names as naming
from bhive_mltf.models.upstream_weights.names import LAST_CONVOLUTION, NORM, Names, Pair, Sizes

State = Mapping[str, Tensor]

_SHOWN = 4
_SPARE_ENCODER = re.compile(r"EncoderLayer\.(.+)")
_SPARE_NORM = re.compile(r"InputProcess\.(cpf|npf|vtx)_conv\.(\d)\.bn\.(\w+)")
_TAUS = "tau_indices"


@dataclass(frozen=True)
class Family:
    """How the weights of a model are called.

    groups : of candidates. has_global : whether columns of the jet are normalised.
    spare_encoder : whether B-Hive's class holds an encoder layer that it never uses.
    """

    names: Names
    groups: tuple[str, ...] = naming.CANDIDATES
    has_global: bool = False
    spare_encoder: bool = False

    @property
    def has_padding_keys(self) -> bool:
        """Whether padded candidates take part in B-Hive's class, as with our option `padding_keys: upstream`."""
        return self.names is naming.particle_transformer


_HLT = ("cpf", "vtx")
_LOST_TRACKS = Family(naming.particle_transformer_2, (*naming.CANDIDATES, "lt"))
FAMILIES: Final[dict[str, Family]] = {
    "DeepJet": Family(naming.deepjet, has_global=True),
    "MoDJet": Family(naming.deepjet, has_global=True),
    "DeepJetHLT": Family(naming.deepjet, _HLT),
    "DeepJetTransformer": Family(naming.deepjet_transformer, spare_encoder=True),
    "DeepJetTransformerHLT": Family(naming.deepjet_transformer_hlt, _HLT, spare_encoder=True),
    "UDeepJetTransformerHLT": Family(naming.deepjet_transformer_hlt, _HLT, spare_encoder=True),
    "ParticleTransformer": Family(naming.particle_transformer),
    "ParticleTransformerHLT": Family(naming.particle_transformer, _HLT, spare_encoder=True),
    "UParT_v0": Family(naming.particle_transformer, spare_encoder=True),
    "ParticleTransformer2": Family(naming.particle_transformer_2),
    "ParticleTransformer2_LT": _LOST_TRACKS,
    "ParticleTransformer2_LT_tau": _LOST_TRACKS,
    "ParticleTransformer2_LT_tau_all": _LOST_TRACKS,
    "ParticleTransformer2_LT_tau_Big": _LOST_TRACKS,
    "ParticleTransformer2_LT_tau_Huge": _LOST_TRACKS,
    "ParticleNet_InPro": Family(naming.particle_net),
    "ParticleNet_InProHLT": Family(naming.particle_net, _HLT),
    "UParticleNet_InProHLT": Family(naming.particle_net, _HLT),
}
"""Models whose checkpoints can be converted. Those that join columns of the jet to what a transformer found
(`Global...`) have other layers here than in B-Hive."""


def is_upstreams(state: State) -> bool:
    """Whether weights have the names of B-Hive's classes."""
    return any(name.startswith(("InputProcess.", "pn.", "Linear.", "cls_token")) for name in state)


def to_ours(model: str, state: State) -> dict[str, Tensor]:
    """Weights of B-Hive's class of a model under our names.

    Raises
    ------
    ModelError
        The model is not converted, or the weights are those of another one: left-over and missing names.
    """
    pairs = _pairs(model, state, theirs=True)
    known = {theirs for theirs, _, _ in pairs}
    left = [name for name in state if name not in known and not _is_spare(name)]
    _refuse_others(model, "B-Hive's", left, [theirs for theirs, _, _ in pairs if theirs not in state])
    found = {ours: _without_axes(state[theirs], axes, theirs) for theirs, ours, axes in pairs}
    return _with_quantiles(model, found, "head")


def to_upstream(model: str, state: State) -> dict[str, Tensor]:
    """Our weights of a model under the names of B-Hive's class, which loads them strictly.

    Raises
    ------
    ModelError
        As `to_ours`.
    """
    pairs = _pairs(model, state, theirs=False)
    known = {ours for _, ours, _ in pairs}
    left = [name for name in state if name not in known]
    _refuse_others(model, "our", left, [ours for _, ours, _ in pairs if ours not in state])
    found = {theirs: state[ours][(..., *(None,) * axes)] for theirs, ours, axes in pairs}
    return {**_with_quantiles(model, found, "Linear"), **_spares(model, found)}


def model_of(state: State) -> str:
    """The first model that weights, under either names, can be those of.

    Raises
    ------
    ModelError
        They are those of no model that is converted; names what is left over or missing for the most similar one.
    """
    theirs, wrong = is_upstreams(state), {}
    head = next((state[name] for name in ("Linear.bias", "pn.fc.2.bias", "head.bias") if name in state), None)
    for model in FAMILIES:
        pairs = _pairs(model, state, theirs=theirs)
        wanted = {pair[0 if theirs else 1] for pair in pairs}
        there = {name for name in state if not (theirs and _is_spare(name))}
        wrong[model] = len(wanted ^ there) + (head is None or len(head) != _n_outputs(model))
    best = min(wrong, key=lambda model: wrong[model])
    if wrong[best]:
        # says which names are wrong, unless only the number of outputs is
        (to_ours if theirs else to_upstream)(best, state)
        outputs = 0 if head is None else len(head)
        msg = f"these weights are like those of {best}, but for {outputs} outputs where that has {_n_outputs(best)}"
        raise ModelError(f"{msg}: convert the checkpoint of one of {', '.join(FAMILIES)}")
    return best


def _n_outputs(model: str) -> int:
    entry = registry.entry(model)
    return len(entry.classes or ()) + len(entry.regression or ())


def _pairs(model: str, state: State, *, theirs: bool) -> list[Pair]:
    if model not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"checkpoints of model {model!r} cannot be converted: take one of {known}")
    family = FAMILIES[model]
    blocks, class_blocks = (r"Encoder\.layers\.(\d+)\.", r"CLS_EncoderLayer(\d+)\.")
    if not theirs:
        blocks, class_blocks = r"blocks\.(\d+)\.", r"class_blocks\.(\d+)\."
    shortcut = "pn.edge_convs.0.sc.weight" if theirs else "convolutions.0.shortcut.weight"
    sizes = Sizes(
        family.groups,
        _count(blocks, state) or 1,
        _count(class_blocks, state) or 1,
        has_global=family.has_global,
        first_shortcut=shortcut in state,
    )
    return list(family.names(sizes))


def _count(pattern: str, state: State) -> int:
    found = (re.match(pattern, name) for name in state)
    return len({match[1] for match in found if match})


def _is_spare(name: str) -> bool:
    """Whether B-Hive's classes hold a weight of this name that they never use."""
    norm = _SPARE_NORM.fullmatch(name)
    if norm is not None:
        return int(norm[2]) == LAST_CONVOLUTION[norm[1]]
    return name == _TAUS or _SPARE_ENCODER.fullmatch(name) is not None


def _spares(model: str, found: State) -> dict[str, Tensor]:
    """Values for what B-Hive's class holds and never uses."""
    family = FAMILIES[model]
    spares: dict[str, Tensor] = {}
    if family.spare_encoder:
        first = "Encoder.layers.0."
        layer = {name.removeprefix(first): value for name, value in found.items() if name.startswith(first)}
        spares |= {f"EncoderLayer.{name}": value.clone() for name, value in layer.items()}
    if family.names is naming.deepjet:
        for group in family.groups:
            place = f"InputProcess.{group}_conv.{LAST_CONVOLUTION[group]}"
            weight = found[f"{place}.lin.bias"]
            fresh = (torch.ones_like, torch.zeros_like, torch.zeros_like, torch.ones_like)
            spares |= {f"{place}.bn.{name}": make(weight) for name, make in zip(NORM, fresh, strict=False)}
            spares[f"{place}.bn.num_batches_tracked"] = torch.tensor(0)
    if model == "UDeepJetTransformerHLT":
        classes = registry.entry(model).classes or {}
        spares[_TAUS] = torch.tensor([place for place, name in enumerate(classes) if "tau" in name])
    return spares


def _with_quantiles(model: str, found: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    """The quantiles of UParT in the other order: the pinball loss of B-Hive has the sign that swaps them."""
    regression = registry.entry(model).regression or ()
    if "pt_q16" not in regression:
        return found
    first = len(registry.entry(model).classes or ()) + regression.index("pt_q16")
    for name in (f"{head}.weight", f"{head}.bias"):
        order = torch.arange(len(found[name]))
        order[first : first + 2] = order[first : first + 2].flip(0)
        found[name] = found[name][order]
    return found


def _without_axes(value: Tensor, axes: int, name: str) -> Tensor:
    if axes and (value.dim() <= axes or value.shape[-axes:].numel() != 1):
        raise ModelError(f"the weight {name} has the shape {tuple(value.shape)}, but a kernel of size 1 is expected")
    return value.flatten(-axes - 1) if axes else value


def _refuse_others(model: str, whose: str, left: list[str], missing: list[str]) -> None:
    parts = [f"{_list(names)} {what}" for names, what in ((left, "left over"), (missing, "missing")) if names]
    if parts:
        raise ModelError(
            f"these weights are not those of {whose} {model}: {' and '.join(parts)}: name the model that was trained"
        )


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more are" if len(names) > _SHOWN else " is" if len(names) == 1 else " are"
    return ", ".join(names[:_SHOWN]) + more
