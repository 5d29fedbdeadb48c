"""The keys of a config file, stale ones of upstream included."""

from __future__ import annotations

from typing import Any, Final

from bhive_mltf.config.schema import GroupName

# Group -> key that lists its branches, in the order of storage.
BRANCH_KEYS: Final[dict[GroupName, str]] = {
    "global": "global_features",
    "cpf": "cpf_candidates",
    "npf": "npf_candidates",
    "vtx": "vtx_features",
    "lt": "lt_candidates",
}
CUSTOM_KEYS: Final[dict[GroupName, str]] = {group: f"{group}_custom_features" for group in BRANCH_KEYS}
LENGTH_KEYS: Final[dict[GroupName, str]] = {g: f"n_{g}_candidates" for g in BRANCH_KEYS if g != "global"}

# Of a config that no default.yml with these keys goes with, as upstream.
FALLBACK_LENGTHS: Final[dict[GroupName, int]] = {"cpf": 50, "npf": 50, "vtx": 5, "lt": 5}

KNOWN: Final[frozenset[str]] = frozenset(
    (
        "treename",
        "bins_pt",
        "bins_eta",
        "processes",
        "process_weights",
        *BRANCH_KEYS.values(),
        *CUSTOM_KEYS.values(),
        *LENGTH_KEYS.values(),
        "four_vectors",
        "truths",
        "reference_flavour",
        "pt_key",
        "eta_key",
        "processor",
        "dataset",
        "data_precision",
        "compression",
        "storage_order",
        "non_finite",
    )
)

RENAMED: Final[dict[str, str]] = {"n_vtx_features": "n_vtx_candidates", "process-weights": "process_weights"}
IGNORED: Final[frozenset[str]] = frozenset(("pair_candidates", "n_pair_candidates"))
# Older names of a processor and a layout, whose files are in half precision.
_HALF: Final[dict[str, tuple[str, str]]] = {
    "processor": ("LZ4FP16Processing", "LZ4Processing"),
    "dataset": ("LZ4FP16Dataset", "LZ4Dataset"),
}


def modernised(values: dict[str, Any], path: str) -> tuple[dict[str, Any], list[str]]:
    """The settings of one file without stale keys, and a warning for each stale key."""
    result = {key: value for key, value in values.items() if key not in RENAMED and key not in IGNORED}
    warnings = []
    for old, new in RENAMED.items():
        if old not in values:
            continue
        if new in values:
            warnings.append(f"config {path}: the stale key {old} is ignored, since {new} is there too; remove {old}")
        else:
            result[new] = values[old]
            warnings.append(f"config {path}: the stale key {old} is taken for {new}; rename it")
    warnings += [f"config {path}: the key {key} is not used; remove it" for key in sorted(IGNORED & values.keys())]
    for key, (old, new) in _HALF.items():
        if result.get(key) == old:
            result |= {key: new, "data_precision": "float16"}
            warnings.append(
                f"config {path}: `{old}` is taken for `{key}: {new}` and `data_precision: float16`; rename it"
            )
    return result, warnings
