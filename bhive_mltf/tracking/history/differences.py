"""What differs between runs: parameters, data, code, environment, and from which step on their losses do."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bhive_mltf.tracking.history import provenance
from bhive_mltf.tracking.history.snapshot import Series, Snapshot, flat

LOSS = "train/loss"
# Fields of a plan that say where things lie, or what another topic shows.
_NOT_PARAMETERS = frozenset(
    {"config", "dataset", "dataset_sidecar", "directory", "generation", "root_files", "val_dataset"}
)
_ABSENT = "-"


@dataclass(frozen=True)
class Difference:
    """One thing that runs do not share.

    topic : "parameters", "data", "code", "environment" or "packages"; values : one per run, as text.
    """

    topic: str
    name: str
    values: tuple[str, ...]


def differences(runs: Sequence[Snapshot]) -> list[Difference]:
    """Everything recorded that is not the same in all runs, topic by topic, sorted by name."""
    found = []
    for topic, facts in _TOPICS.items():
        tables = [facts(run) for run in runs]
        for name in sorted({name for table in tables for name in table}):
            values = tuple(_text(table.get(name, _ABSENT)) for table in tables)
            if len(set(values)) > 1:
                found.append(Difference(topic, name, values))
    return found


def parameters(run: Snapshot) -> dict[str, Any]:
    """Parameters of the plan, and the config with dotted names."""
    plan = run.plan
    own = {name: value for name, value in plan.items() if name not in _NOT_PARAMETERS}
    return {**own, **{f"config.{name}": value for name, value in flat(plan.get("config", {}))}}


def data(run: Snapshot) -> dict[str, Any]:
    """Digest of each data set, and its ROOT files by their content."""
    found: dict[str, Any] = {}
    for context, about in run.datasets.items():
        found[f"{context} set, digest"] = about.get("digest", "")
        found[f"{context} set, seed of the order"] = about.get("seed", "")
        for number, source in enumerate(about.get("sources", [])):
            found[f"{context} set, ROOT file {number}"] = f"{source.get('content_id')} ({source.get('entries')} jets)"
    return found


def code(run: Snapshot) -> dict[str, Any]:
    """Commit, and a digest of what was changed since."""
    git, patch = run.facts.get("git", {}), run.texts.get(provenance.PATCH, "")
    version, contents = run.packages.get("bhive-mltf", ("", ""))
    return {
        "commit": git.get("commit", ""),
        "changes since the commit": hashlib.sha256(patch.encode()).hexdigest()[:12] if patch else "none",
        "bhive_mltf": version,
        # of an installed wheel; in a checkout the commit says it
        "files of bhive_mltf": "" if git.get("commit") else contents,
    }


def environment(run: Snapshot) -> dict[str, Any]:
    """Machine, interpreter, driver, torch and what its numbers depend on."""
    facts = run.facts
    machine, system, torch = facts.get("machine", {}), facts.get("system", {}), facts.get("torch", {})
    processes = run.json("reproducibility.json").get("processes") or [{}]
    conditions = {key: value for key, value in processes[-1].items() if key not in ("time", "from_step")}
    return {
        **{name: machine.get(name, "") for name in ("host", "python", "system")},
        **{name: system.get(name, "") for name in ("os", "driver")},
        "torch.devices": torch.get("devices", ""),
        **conditions,
    }


def packages(run: Snapshot) -> dict[str, Any]:
    """Version of each package, with the digest of its contents where that is known."""
    own = {name: found for name, found in run.packages.items() if name != "bhive-mltf"}
    return {name: f"{version} ({contents})" if contents else version for name, (version, contents) in own.items()}


_TOPICS: Mapping[str, Callable[[Snapshot], dict[str, Any]]] = {
    "parameters": parameters,
    "data": data,
    "code": code,
    "environment": environment,
    "packages": packages,
}


@dataclass(frozen=True)
class Since:
    """From when on two series differ.

    last_equal : last common step at which they agree, None if they never do; first : first one at which they differ.
    """

    last_equal: int | None
    first: int
    values: tuple[float, float]


def first_difference(one: Series, other: Series) -> Since | None:
    """The first common step at which two series differ in any bit; None where they agree at all common steps."""
    last = None
    for step in sorted(one.keys() & other.keys()):
        if not _same(one[step], other[step]):
            return Since(last, step, (one[step], other[step]))
        last = step
    return None


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
