"""Digests of configs: what is equal in meaning has the same digest, whatever the file looks like."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bhive_mltf.config.schema import Config, Group

# Part of every digest: raise it when the meaning of a config changes.
FORMAT = 1


def digest(content: dict[str, Any]) -> str:
    """Hex SHA-256 of canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _group_content(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "plain": group.plain,
        "custom": [(feature.name, feature.parse().canonical) for feature in group.custom],
        "length": group.length,
    }


def dataset_content(config: Config) -> dict[str, Any]:
    """What decides the content of a training set: not the figures' cuts, sampling weights, or layout on disk."""
    content = {
        "format": FORMAT,
        "treename": config.treename,
        "bins_pt": config.bins_pt,
        "bins_eta": config.bins_eta,
        "processes": config.processes,
        "groups": [_group_content(group) for group in config.groups],
        "truths": [truth.model_dump(mode="json") for truth in config.truths],
        "reference_flavour": config.reference_flavour,
        "pt_key": config.pt_key,
        "eta_key": config.eta_key,
        "data_precision": config.data_precision,
    }
    if config.data_precision == "float16":
        # Four-vectors are not narrowed, so that which columns they are decides the content.
        content["full_width"] = {g.name: g.four_vectors.columns for g in config.groups if g.four_vectors}
    return content


def all_content(config: Config) -> dict[str, Any]:
    """Every setting."""
    four_vectors = {g.name: g.four_vectors.model_dump(mode="json") for g in config.groups if g.four_vectors}
    return {
        **dataset_content(config),
        "four_vectors": four_vectors,
        "process_cuts": {name: cuts.model_dump() for name, cuts in config.process_cuts.items()},
        "process_weights": config.process_weights,
        "processor": config.processor,
        "dataset": config.dataset,
        # Younger than the digests of existing runs, which stay as they are.
        **({"compression": config.compression} if config.compression != "none" else {}),
        **({"storage_order": config.storage_order} if config.storage_order else {}),
    }
