"""Records of the journal as calls of the MLflow client: one function per kind.

metrics : `values` {key: value}, `step`, `time` in ms since 1970; `of`, see `Journal.metrics`
params, tags : `values` {key: text}
text : `text`, `file`; artifact : `path`, `folder`; dataset : what `Run.dataset` takes
model : `folder` (beside the journal), and what `Run.model` takes; status : `status`, `time` for one that ends

Any of them may name a `child` of the run. To deliver a record twice does no harm.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.tracking import sanitize
from bhive_mltf.tracking.journal import Record, folder_of
from bhive_mltf.tracking.run_resolver import Runs

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_DIGEST = 36  # characters
_MAX_SOURCE = 60_000  # characters
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


def what(record: Record) -> str:
    """The kind of a record in words; empty for a line that is not delivered."""
    return _WHAT.get(record.get("kind", ""), "")


def count(records: Iterable[Record]) -> Counter[str]:
    """How many of what."""
    found: Counter[str] = Counter()
    for record in records:
        if what(record):
            found[what(record)] += len(record["values"]) if record["kind"] == "metrics" else 1
    return found


def size(record: Record) -> int:
    """Entries that a record adds to a call."""
    return len(record["values"]) if record.get("kind") == "metrics" else 1


def points(client: MlflowClient, runs: Runs, records: Iterable[Record]) -> None:
    """Deliver records of metrics of one run in one call."""
    from mlflow.entities import Metric

    run_id, found = "", []
    for record in records:
        run_id = run_id or runs.resolve(client, record.get("child", ""))
        found += [Metric(key, float(value), record["time"], record["step"]) for key, value in record["values"].items()]
    client.log_batch(run_id, metrics=found, synchronous=True)


def one(client: MlflowClient, runs: Runs, record: Record) -> None:
    """Deliver a record of any other kind; one of an unknown kind is passed over."""
    send = _SENDERS.get(record.get("kind", ""))
    if send is not None:
        send(client, runs, runs.resolve(client, record.get("child", "")), record)


def discard(directory: Path, record: Record) -> None:
    """Remove what a record kept beside the journal, once it is done with."""
    if record.get("kind") == "model":
        shutil.rmtree(folder_of(directory) / record["folder"], ignore_errors=True)


def _params(client: MlflowClient, runs: Runs, run_id: str, record: Record) -> None:  # noqa: ARG001
    sanitize.log_params(client, run_id, record["values"])


def _tags(client: MlflowClient, runs: Runs, run_id: str, record: Record) -> None:  # noqa: ARG001
    sanitize.log_tags(client, run_id, record["values"])


def _text(client: MlflowClient, runs: Runs, run_id: str, record: Record) -> None:  # noqa: ARG001
    client.log_text(run_id, record["text"], record["file"])


def _artifact(client: MlflowClient, runs: Runs, run_id: str, record: Record) -> None:  # noqa: ARG001
    log = client.log_artifacts if Path(record["path"]).is_dir() else client.log_artifact
    log(run_id, record["path"], record["folder"])


def _dataset(client: MlflowClient, runs: Runs, run_id: str, record: Record) -> None:  # noqa: ARG001
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = record["source"]
    facts = json.dumps({**(record["profile"] or {}), "digest": record["digest"]}, default=str)
    schema = sanitize.dataset_schema(record["columns"]) if record["columns"] else None
    where = json.dumps({"uri": source[:_MAX_SOURCE]})
    kind = "local" if "://" not in source else "uri"
    dataset = Dataset(record["name"], record["digest"][:_MAX_DIGEST], kind, where, schema, facts)
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])])


def _model(client: MlflowClient, runs: Runs, run_id: str, record: Record) -> None:
    from bhive_mltf.tracking.logged_model import send

    folder = folder_of(runs.directory) / record["folder"]
    send(client, folder, runs.record.experiment_id, run_id, record)


def _status(client: MlflowClient, runs: Runs, run_id: str, record: Record) -> None:
    if not record.get("child") and runs.record.external:
        return
    if record.get("time"):
        client.set_terminated(run_id, record["status"], record["time"])
    else:
        client.update_run(run_id, status=record["status"])


_SENDERS: dict[str, Callable[[MlflowClient, Runs, str, Record], None]] = {
    "params": _params,
    "tags": _tags,
    "text": _text,
    "artifact": _artifact,
    "dataset": _dataset,
    "model": _model,
    "status": _status,
}
