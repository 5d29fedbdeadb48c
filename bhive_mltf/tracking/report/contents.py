"""What a training's journal and records say of it, read for the report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bhive_mltf.files.records import RECORD_NAME, read_object
from bhive_mltf.tracking import journal
from bhive_mltf.tracking.journal import Record
from bhive_mltf.tracking.store import RunRecord

Series = list[tuple[int, float, float]]  # step, seconds since 1970, value


@dataclass
class Contents:
    """A training as its report shows it.

    series : points of each metric of the run itself, sorted by step; of evaluations the last ones.
    figures : (folder, file) of images that are there.
    parameters, environment : plain values by name; empty where nothing was recorded.
    model, dataset : names of both, empty where they are not known.
    """

    directory: Path
    run: RunRecord | None
    status: str
    series: dict[str, Series] = field(default_factory=dict)
    figures: list[tuple[str, Path]] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    dataset: str = ""
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> float | None:
        """Time of the first point, in seconds since 1970."""
        return min((points[0][1] for points in self.series.values()), default=None)

    def energy(self) -> float | None:
        """What the GPUs used, in Wh, over all starts of the training; None where no GPU counts it."""
        found = [points for name, points in self.series.items() if name.endswith("_energy_watt_hours")]
        return sum(map(_used, found)) if found else None


def read(directory: Path) -> Contents:
    """Read what is there of a training; what is missing is left out."""
    found = Contents(directory, RunRecord.read(directory), journal.last_status(directory) or "")
    for record in journal.records(directory):
        if not record.get("child"):
            _add(found, record)
    for points in found.series.values():
        points.sort(key=lambda point: point[0])
    found.parameters = read_object(directory / RECORD_NAME).get("parameters", {})
    plan = read_object(directory / "plan.json")
    found.model = str(plan.get("model_name", found.parameters.get("model_name", "")))
    found.dataset = str(found.parameters.get("dataset_version", Path(plan.get("dataset") or "").name))
    return found


def _add(found: Contents, record: Record) -> None:
    """Add what a record of the run itself says."""
    match record.get("kind"):
        case "metrics":
            for name, value in record["values"].items():
                found.series.setdefault(name, []).append((record["step"], record["time"] / 1000, float(value)))
        case "tags":
            found.tags |= record["values"]
        case "text" if record["file"] == "environment.json":
            found.environment = json.loads(record["text"])
        case "dataset":
            others = [dataset for dataset in found.datasets if dataset["name"] != record["name"]]
            found.datasets = [*others, record]
        case "artifact":
            image = record["folder"] or "", Path(record["path"])
            if image[1].suffix == ".png" and image not in found.figures and image[1].is_file():
                found.figures.append(image)


def _used(points: Series) -> float:
    """The end of each start's count: a smaller value than before begins another start."""
    total, before = 0.0, 0.0
    for _, _, value in points:
        if value < before:
            total += before
        before = value
    return total + before
