"""B-Hive's own models behind our interface.

Such a model is an `nn.Module` made from a mapping with B-Hive's config keys. It declares `classes` and may declare
`global_features`, `cpf_candidates`, `npf_candidates`, `vtx_features`, `lt_features` (ordered columns) and
`n_cpf_candidates`, `n_npf_candidates`, `n_vtx_candidates`, `n_lt_candidates` (fewer cut candidates off). Its
`forward` takes (global [B,F], cpf, npf, vtx, lt [B,N,F] each) and gives logits [B,C].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
        logits = self.module(tuple(tensors))
        if not isinstance(logits, Tensor):
            msg = (
                f"model {self.name} gives a {type(logits).__name__} where logits are expected; a multi-task model has "
                "to be a bhive_mltf.models.base.Tagger with `regression_targets`"
            )
            raise ModelError(msg)
        return logits


def adapt(module_class: Callable[..., nn.Module], config: Config, **kwargs: Any) -> UpstreamTagger:  # noqa: ANN401
    """Build `module_class(config mapping, **kwargs)` and give it our interface.

    Raises
    ------
    ModelError : no `classes`, or columns and labels that the config does not have.
    """
    return UpstreamTagger(config, module_class, **kwargs)


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
