"""Records of the journal as calls of the MLflow client, with names and values as MLflow takes them.

metrics : `values` {key: value}, `step`, `time` in ms since 1970; `of`, see `Journal.metrics`
params, tags : `values` {key: text}
text : `text`, `file`; artifact : `path`, `folder`; dataset : what `Run.dataset` takes
model : `folder` (beside the journal), and what `Run.model` takes; status : `status`, `time` for one that ends

Any of them may name a `child` of the run. To deliver a record twice does no harm.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.tracking import journal
from bhive_mltf.tracking.journal import Record, folder_of
from bhive_mltf.tracking.run_resolver import one_maker
from bhive_mltf.tracking.store import RunRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

MAX_PARAM = 6000  # characters; mlflow cuts longer ones
MAX_TAG = 5000
MAX_NAME = 250
_MAX_DIGEST = 36
_MAX_SOURCE = 60_000
_NOT_IN_NAMES = re.compile(r"[^\w.\- :/]")
_NOT_IN_MODEL_NAMES = re.compile(r"[^\w\- ]")
_CUT = "... (cut; whole text in the artifact {file})"
_WHAT = {
    "metrics": "point",
    "params": "set of parameters",
    "tags": "set of tags",
    "text": "file",
    "artifact": "file",
    "dataset": "data set",
    "model": "model",
    "status": "status",
}


@dataclass(frozen=True)
class Target:
    """Where a record goes: the run of a training directory, or a child of it."""

    client: MlflowClient
    directory: Path
    run: RunRecord
    run_id: str


def what(record: Record) -> str:
    """The kind of a record in words; empty for a line that is not delivered."""
    return _WHAT.get(record.get("kind", ""), "")


def size(record: Record) -> int:
    """How many entries a record has: points of metrics, else 1."""
    return len(record["values"]) if record.get("kind") == "metrics" else 1


def undelivered(directory: Path, sent: Callable[[Path], int] = journal.sent) -> Counter[str]:
    """What the journal of a training still holds, by kind.

    sent : up to which byte a file was delivered.
    """
    found: Counter[str] = Counter()
    for path in journal.files(directory):
        for record, _ in journal.read(path, sent(path)):
            if what(record):
                found[what(record)] += size(record)
    return found


def send(target: Target, records: Sequence[Record]) -> None:
    """Deliver records of metrics in one call, or one record of another kind."""
    client, run_id, record = target.client, target.run_id, records[0]
    match record["kind"]:
        case "metrics":
            _metrics(target, records)
        case "params":
            log_params(client, run_id, record["values"])
        case "tags":
            log_tags(client, run_id, record["values"])
        case "text":
            client.log_text(run_id, record["text"], record["file"])
        case "artifact":
            log = client.log_artifacts if Path(record["path"]).is_dir() else client.log_artifact
            log(run_id, record["path"], record["folder"])
        case "dataset":
            _dataset(target, record)
        case "model":
            _model(target, record)
        case "status":
            _status(target, record)


def discard(directory: Path, record: Record) -> None:
    """Remove what a record kept beside the journal, once it is delivered or refused."""
    if record.get("kind") == "model":
        shutil.rmtree(folder_of(directory) / record["folder"], ignore_errors=True)


def _metrics(target: Target, records: Sequence[Record]) -> None:
    from mlflow.entities import Metric

    points = [
        Metric(key, float(value), record["time"], record["step"])
        for record in records
        for key, value in record["values"].items()
    ]
    target.client.log_batch(target.run_id, metrics=points, synchronous=True)


def _dataset(target: Target, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = record["source"]
    facts = json.dumps({**(record["profile"] or {}), "digest": record["digest"]}, default=str)
    # the form that MLflow's page draws as a table
    columns = [{"name": name, "type": kind} for name, kind in (record["columns"] or {}).items()]
    schema = json.dumps({"mlflow_colspec": columns}) if columns else None
    where = json.dumps({"uri": source[:_MAX_SOURCE]})
    kind = "local" if "://" not in source else "uri"
    dataset = Dataset(record["name"], record["digest"][:_MAX_DIGEST], kind, where, schema, facts)
    context = [InputTag("mlflow.data.context", record["context"])]
    target.client.log_inputs(target.run_id, [DatasetInput(dataset, context)])


def _model(target: Target, record: Record) -> None:
    from bhive_mltf.tracking.logged_model import send as send_model

    folder = folder_of(target.directory) / record["folder"]
    with one_maker(target.directory):
        if folder.is_dir():  # else another process delivered it meanwhile
            send_model(target.client, folder, target.run.experiment_id, target.run_id, record)


def _status(target: Target, record: Record) -> None:
    if target.run.external and not record.get("child"):
        return
    if record.get("time"):
        target.client.set_terminated(target.run_id, record["status"], record["time"])
    else:
        target.client.update_run(target.run_id, status=record["status"])


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, object]) -> None:
    """Add parameters to a run; the value that is there already stays, with one warning that names the others."""
    from mlflow.entities import Param

    known: dict[str, str] = client.get_run(run_id).data.params
    new: list[Param] = []
    changed: list[str] = []
    for key, value in params.items():
        label, text = metric_name(key), as_text(value)
        if len(text) > MAX_PARAM:
            file = f"params/{label}.txt"
            if label not in known:
                client.log_text(run_id, text, file)
            text = text[: MAX_PARAM - 500] + _CUT.format(file=file)
        if label not in known:
            new.append(Param(label, text))
        elif known[label] != text:
            changed.append(f"{label} ({_short(known[label])} stays, now {_short(text)})")
    if new:
        client.log_batch(run_id, params=new)
    if changed:
        logger.warning(
            "MLflow parameters of run %s cannot change: %s; begin another training to record other values",
            run_id,
            ", ".join(sorted(changed)),
        )


def log_tags(client: MlflowClient, run_id: str, tags: Mapping[str, object]) -> None:
    """Set tags of a run."""
    from mlflow.entities import RunTag

    if tags:
        client.log_batch(run_id, tags=[RunTag(*pair) for pair in run_tags(tags).items()])


def run_tags(tags: Mapping[str, object]) -> dict[str, str]:
    """Tags as MLflow takes them; long values are cut."""
    return {metric_name(key): as_text(value)[:MAX_TAG] for key, value in tags.items()}


def metric_name(text: str) -> str:
    """`text` as the name of a metric, a parameter or a tag: other characters become `_`."""
    clean = posixpath.normpath(_NOT_IN_NAMES.sub("_", text)).lstrip("/")[:MAX_NAME]
    return clean if clean not in ("", ".") and not clean.startswith("..") else "_" + clean.lstrip(".")


def model_name(text: str) -> str:
    """`text` as the name of a logged model."""
    return _NOT_IN_MODEL_NAMES.sub("_", text)[:MAX_NAME] or "model"


def as_text(value: object) -> str:
    """The value of a parameter or tag as text: strings as they are, containers as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=str)
    return str(value)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
