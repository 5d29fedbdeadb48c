"""What was recorded of a run: from the directory of its training, or from the MLflow store alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bhive_mltf.errors import TrackingError
from bhive_mltf.tracking import connection, journal, store
from bhive_mltf.tracking.connection import one_line
from bhive_mltf.tracking.history import provenance
from bhive_mltf.tracking.store import RunRecord
from bhive_mltf.tracking.sync import directories

if TYPE_CHECKING:
    from mlflow import MlflowClient

Series = dict[int, float]
_FOLDERS = ("data", "starts")
_FILES = ("plan.json", "config.json", "environment.json", "filelist.txt", provenance.LOCK, provenance.PATCH)
_SERIES = ("train/loss", "Training Loss", "Validation Loss", "Validation Accuracy", "Test Loss", "Test Accuracy")


@dataclass
class Snapshot:
    """A run as it was recorded; what an older version of the code did not record is empty.

    label : what the run is called in tables.
    texts : artifacts of the run that are text, by name.
    series : values by step, of some metrics.
    directory : of the training, None where only the store is at hand.
    """

    label: str
    run_id: str
    directory: Path | None
    texts: dict[str, str] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)

    def json(self, name: str) -> dict[str, Any]:
        """An artifact as a JSON object; empty where it is none."""
        try:
            value = json.loads(self.texts.get(name, ""))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def plan(self) -> dict[str, Any]:
        """The plan of the training."""
        return self.json("plan.json")

    @property
    def facts(self) -> dict[str, Any]:
        """Environment of the command; with what its ranks found at the last start, where that is recorded."""
        starts = sorted((name for name in self.texts if name.startswith("starts/")), key=_step)
        last = self.json(starts[-1]) if starts else {}
        return {**self.json("environment.json"), **{key: last[key] for key in ("torch", "system") if key in last}}

    @property
    def packages(self) -> dict[str, tuple[str, str]]:
        """Package -> (version, digest of its contents or "")."""
        locked = provenance.read_lock(self.texts.get(provenance.LOCK, ""))
        known = self.json("environment.json").get("packages", {})
        return locked or {provenance.normalised(name): (str(version), "") for name, version in known.items()}

    @property
    def datasets(self) -> dict[str, dict[str, Any]]:
        """The data sets by context ("training", "validation", "test"): `digest`, `sources`, ..."""
        names = [name for name in self.texts if name.startswith("data/") and name.endswith(".json")]
        return {Path(name).stem: self.json(name) for name in sorted(names)}


def _step(name: str) -> int:
    digits = Path(name).stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def find(name: str, folder: Path | None) -> Snapshot:
    """The run called `name`: the directory of a training, or a run id or its beginning.

    Parameters
    ----------
    folder : below which trainings are looked for by their run id, `$DATA_PATH` as a rule; also says which store is
        asked for a run that is not there.

    Raises
    ------
    TrackingError : there is no such run, or several.
    """
    if (Path(name) / store.FILE_NAME).is_file() or (Path(name) / "plan.json").is_file():
        return of_directory(Path(name))
    found = [path for path in (directories(folder) if folder else ()) if _run_id(path).startswith(name)]
    if len(found) > 1:
        listed = ", ".join(str(path) for path in found)
        raise TrackingError(f"{len(found)} runs begin with '{name}': give more of the id, or a directory of: {listed}")
    if found:
        return of_directory(found[0])
    return of_store(name, store.tracking_uri(folder or Path.cwd()))


def _run_id(directory: Path) -> str:
    try:
        record = RunRecord.read(directory)
    except TrackingError:
        return ""
    return record.run_id if record is not None else ""


def of_directory(directory: Path) -> Snapshot:
    """What the journal and the files of a training say of it."""
    directory = directory.absolute()
    found = Snapshot("/".join(directory.parts[-4:]), _run_id(directory), directory)
    for record in journal.records(directory):
        if record.get("child"):
            continue
        if record.get("kind") == "text" and _is_wanted(record["file"]):
            found.texts[record["file"]] = record["text"]
        elif record.get("kind") == "metrics":
            for key, value in record["values"].items():
                if key in _SERIES or key.startswith("auc/"):
                    found.series.setdefault(key, {})[int(record["step"])] = float(value)
    for name in ("plan.json", "reproducibility.json"):
        if (directory / name).is_file():
            found.texts[name] = (directory / name).read_text(encoding="utf-8")
    return found


def _is_wanted(name: str) -> bool:
    return name in _FILES or name.startswith(tuple(f"{folder}/" for folder in _FOLDERS))


def of_store(run_id: str, uri: str) -> Snapshot:
    """What the MLflow store has of a run.

    Raises
    ------
    TrackingError : it has no such run, or does not answer.
    """
    connection.load()
    try:
        with connection.short_http(), connection.quiet_with_warnings():
            client = connection.connect(uri)
            run = client.get_run(run_id)
            found = Snapshot(str(run.info.run_name or run_id), run_id, None)
            for name in _names(client, run_id):
                found.texts[name] = Path(client.download_artifacts(run_id, name)).read_text(encoding="utf-8")
            for key in run.data.metrics:
                if key in _SERIES or key.startswith("auc/"):
                    points = client.get_metric_history(run_id, key)
                    found.series[key] = {int(point.step): float(point.value) for point in points}
    except Exception as error:
        if connection.is_missing(error):
            raise TrackingError(
                f"run '{run_id}' is neither below the folder nor in {store.without_credentials(uri)}: give a run id, "
                "the directory of a training, or MLFLOW_TRACKING_URI"
            ) from error
        raise TrackingError(
            f"MLflow at {store.without_credentials(uri)} cannot be asked for run '{run_id}' ({one_line(error)}): check "
            "MLFLOW_TRACKING_URI"
        ) from error
    return found


def _names(client: MlflowClient, run_id: str) -> Iterator[str]:
    for entry in client.list_artifacts(run_id):
        if entry.is_dir and entry.path in _FOLDERS:
            yield from (inner.path for inner in client.list_artifacts(run_id, entry.path))
        elif entry.path in (*_FILES, "reproducibility.json"):
            yield entry.path


def default_folder(given: str | None) -> Path | None:
    """The folder that was given, else `$DATA_PATH`, else None."""
    path = given or os.environ.get("DATA_PATH")
    return Path(path) if path else None


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any JSON value
    """The leaves of a JSON value by their path, `a.b.c`; lists of plain values are leaves."""
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from flat(one, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        for number, one in enumerate(value):
            name = one.get("name", number) if isinstance(one, Mapping) else number
            yield from flat(one, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
