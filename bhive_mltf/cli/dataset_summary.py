"""What `bhive-mltf dataset info` says."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bhive_mltf.data.dataset import Dataset

MAX_FILES = 8
_PIECE = 1_000_000


def summarise(dataset: Dataset) -> dict[str, Any]:
    """Plain JSON values."""
    manifest = dataset.manifest
    return {
        "directory": str(dataset.directory),
        "layout": manifest.layout,
        "jets": manifest.n_jets,
        "shards": [dataclasses.asdict(shard) for shard in manifest.shards],
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "columns": {
            group.name: {"columns": list(group.columns), "length": group.length} for group in manifest.schema.groups
        },
        "labels": _labels(dataset),
        "accounting": dataclasses.asdict(manifest.accounting),
        "config": manifest.config_name,
        "config_digest": manifest.config_digest,
        "seed": manifest.seed,
        "precision": manifest.precision,
        "weighting": manifest.weighting,
        "compression": manifest.compression,
        "digest": manifest.digest,
        "derived": manifest.derived,
        "jet_ids": manifest.jet_ids,
        "code_version": manifest.code_version,
        "sources": [dataclasses.asdict(source) for source in manifest.sources],
        "skipped_files": [dataclasses.asdict(skipped) for skipped in manifest.skipped_files],
    }


def _labels(dataset: Dataset) -> list[dict[str, Any]]:
    """Jets and their summed weight per process and truth label; a jet counts for each of its labels."""
    schema = dataset.schema
    # Upstream's -1, "matches no process", comes last.
    shape = (len(schema.truths), len(schema.processes) + 1)
    jets, weights = np.zeros(shape, np.int64), np.zeros(shape)
    for start in range(0, len(dataset), _PIECE):
        index = dataset.index[start : start + _PIECE]
        process = np.asarray(index.process, np.int64) % shape[1]
        for label in range(shape[0]):
            has = (index.truth_bits >> np.uint64(label)) & np.uint64(1) == 1
            jets[label] += np.bincount(process[has], minlength=shape[1])
            weights[label] += np.bincount(process[has], index.weight[has], minlength=shape[1])
    names = [*schema.processes, None]
    return [
        {"process": names[p], "label": schema.truths[k], "jets": int(jets[k, p]), "sum_weight": float(weights[k, p])}
        for p in range(shape[1])
        for k in range(shape[0])
        if jets[k, p]
    ]


def show(summary: dict[str, Any], console: Console) -> None:
    """Print a summary, 80 columns wide or what the terminal has."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(summary):
        facts.add_row(name, value)
    console.print(facts)
    labels = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("process", "label"):
        labels.add_column(heading, overflow="fold")
    for heading in ("jets", "share", "sum of weights"):
        labels.add_column(heading, justify="right", no_wrap=True)
    for row in summary["labels"]:
        share = f"{row['jets'] / summary['jets']:.1%}"
        labels.add_row(row["process"] or "-", row["label"], f"{row['jets']:,}", share, f"{row['sum_weight']:,.1f}")
    console.print()
    console.print(labels)


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    jets, shards, accounting = summary["jets"], summary["shards"], summary["accounting"]
    origin = " (derived: a set of upstream, jet ids are shard and row)" if summary["derived"] else ""
    rejected = ", ".join(f"{reason} {number:,}" for reason, number in accounting["rejected"].items()) or "none"
    groups = [f"{name} {len(group['columns'])} x {group['length']}" for name, group in summary["columns"].items()]
    facts = [
        ("directory", summary["directory"]),
        ("layout", summary["layout"] + origin),
        ("jets", f"{jets:,} in {len(shards)} shards of at most {max(shard['rows'] for shard in shards):,}"),
        ("size", f"{summary['bytes'] / 1e6:,.1f} MB, {summary['bytes'] / jets:,.0f} bytes per jet"),
        ("columns", ", ".join(groups)),
        ("precision", summary["precision"]),
        ("jets read", f"{accounting['read']:,}, accepted {accounting['accepted']:,}, rejected: {rejected}"),
        ("weighting", "unknown" if summary["derived"] else summary["weighting"]),
        ("config", f"{summary['config']} ({summary['config_digest'][:12]})"),
        ("seed", "unknown" if summary["derived"] else str(summary["seed"])),
        ("digest", summary["digest"]),
        ("sources", _some([source["path"] for source in summary["sources"]], 1)),
    ]
    if summary["skipped_files"]:
        facts.append(("skipped", _some([f"{file['path']}: {file['reason']}" for file in summary["skipped_files"]])))
    return facts


def _some(lines: list[str], limit: int = MAX_FILES) -> str:
    more = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return f"{len(lines)} files: " + "\n".join([*lines[:limit], *more])
