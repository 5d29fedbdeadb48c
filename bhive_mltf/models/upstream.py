"""B-Hive's own models behind our interface.

Such a model is an `nn.Module` made from a mapping with B-Hive's config keys. It declares `classes` and may declare
`global_features`, `cpf_candidates`, `npf_candidates`, `vtx_features`, `lt_features` (ordered columns) and
`n_cpf_candidates`, `n_npf_candidates`, `n_vtx_candidates`, `n_lt_candidates` (fewer cut candidates off). Its
`forward` takes (global [B,F], cpf, npf, vtx, lt [B,N,F] each) and gives logits [B,C]. Its weights have the names in
checkpoints that B-Hive gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bhive_mltf.errors import ModelError
from bhive_mltf.models.base import Tagger
from bhive_mltf.models.resolve import GLOBAL, GroupRequest

if TYPE_CHECKING:
    from bhive_mltf.config import Config, Group
    from bhive_mltf.interface import Batch

COLUMN_KEYS = {
    GLOBAL: "global_features",
    "cpf": "cpf_candidates",
    "npf": "npf_candidates",
    "vtx": "vtx_features",
    "lt": "lt_candidates",
}
LENGTH_KEYS = {name: f"n_{name}_candidates" for name in ("cpf", "npf", "vtx", "lt")}
# Earlier versions put it before each name of a weight.
_FORMER_PREFIX = "module."


class UpstreamTagger(Tagger):
    """A module of B-Hive's kind as a tagger; see `adapt`."""

    padding = "configured"

    def __init__(self, config: Config, module_class: Callable[..., nn.Module], **kwargs: Any) -> None:  # noqa: ANN401
        self._label = getattr(module_class, "__name__", type(module_class).__name__)
        declared = getattr(module_class, "classes", None)
        if not declared:
            msg = f"model {self._label} declares no `classes`; give it a mapping from class to truth labels"
            raise ModelError(msg)
        self.classes = {name: tuple(labels) for name, labels in declared.items()}
        self.groups = tuple(_request(module_class, name) for name in COLUMN_KEYS)
        super().__init__(config)
        self.module = module_class(upstream_config(config), **kwargs)

    @property
    def name(self) -> str:
        """Name of the wrapped class."""
        return self._label

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B,C] of the wrapped module."""
        there = {group.name for group in self.inputs.groups}
        tensors = []
        for name in COLUMN_KEYS:
            if name in there:
                features = self.features(batch, name)
                tensors.append(features.flatten(1) if name == GLOBAL else features)
            else:
                shape = (len(batch), 0) if name == GLOBAL else (len(batch), 0, 0)
                tensors.append(batch.weight.new_zeros(shape, dtype=self.dtype))
        return self._checked(self.module(tuple(tensors)))

    def _checked(self, logits: object) -> Tensor:
        if isinstance(logits, Tensor):
            return logits
        msg = (
            f"model {self.name} gives a {type(logits).__name__} where logits are expected, as B-Hive's multi-task "
            "models do, which are not taken: derive it from bhive_mltf.models.base.Tagger, with `regression` and "
            "`regression_targets`"
        )
        raise ModelError(msg)

    def refuse_other_outputs(self) -> None:
        """ModelError when the module gives something else than logits for two jets without candidates.

        A module that fails on such jets is not judged here.
        """
        shapes = {group.name: (2, group.length, len(group.columns)) for group in self.inputs.groups}
        modes = [(part, part.training) for part in self.module.modules()]
        try:
            tensors = [torch.zeros(shapes.get(name, (2, 0, 0)), dtype=self.dtype) for name in COLUMN_KEYS]
            tensors[0] = tensors[0].flatten(1)
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                found = self.module.eval()(tuple(tensors))
        except Exception:  # noqa: BLE001 - whatever a class of another package raises
            return
        finally:
            for part, mode in modes:
                part.training = mode
        self._checked(found)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as torch has it
        """The weights under the names that the wrapped class gives them."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: ANN401
        """Load such weights, also those of earlier versions, whose names begin with `module.`."""
        there = set(self.module.state_dict())
        if not there & set(state_dict) and all(name.startswith(_FORMER_PREFIX) for name in state_dict):
            state_dict = {name.removeprefix(_FORMER_PREFIX): value for name, value in state_dict.items()}
        return self.module.load_state_dict(state_dict, strict, assign)


def adapt(module_class: Callable[..., nn.Module], config: Config, **kwargs: Any) -> UpstreamTagger:  # noqa: ANN401
    """Build `module_class(config mapping, **kwargs)` and give it our interface.

    Raises
    ------
    ModelError : no `classes`, columns and labels that the config does not have, or outputs that are no logits.
    """
    tagger = UpstreamTagger(config, module_class, **kwargs)
    tagger.refuse_other_outputs()
    return tagger


def upstream_config(config: Config) -> dict[str, Any]:
    """The keys of a B-Hive config that its models read."""
    groups: dict[str, Group] = {group.name: group for group in config.groups}
    mapping: dict[str, Any] = {"truths": [truth.label for truth in config.truths]}
    for name, key in COLUMN_KEYS.items():
        group = groups.get(name)
        mapping[key] = list(group.plain) if group else []
        mapping[f"{name}_custom_features"] = [{c.name: c.expression} for c in group.custom] if group else []
        if name in LENGTH_KEYS:
            mapping[LENGTH_KEYS[name]] = group.length if group else 0
    return mapping


def _request(module_class: Callable[..., nn.Module], name: str) -> GroupRequest:
    keys = ("lt_features", COLUMN_KEYS[name]) if name == "lt" else (COLUMN_KEYS[name],)
    columns = next((getattr(module_class, key) for key in keys if getattr(module_class, key, None)), None)
    return GroupRequest(
        name,
        columns=None if columns is None else tuple(columns),
        length=getattr(module_class, LENGTH_KEYS.get(name, ""), None),
        optional=columns is None,
    )
