"""The run that MLflow keeps."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from bhive_mltf.tracking import connection, convert
from bhive_mltf.tracking.failures import one_line
from bhive_mltf.tracking.record import RunRecord
from bhive_mltf.tracking.run import FLUSH_TIMEOUT, Run
from bhive_mltf.tracking.sender import Operation, Point, Sender
from bhive_mltf.tracking.target import ChildTarget, Target

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import nn

    from bhive_mltf.tracking.system_metrics import SystemMetrics

P = ParamSpec("P")

_ENDED = ("FINISHED", "FAILED", "KILLED")
_MAX_DIGEST = 36  # characters
_MAX_SOURCE = 60_000  # characters


def open_run(record: RunRecord) -> MlflowRun:
    """The run of a record. Raises ImportError without mlflow; a store that does not answer is no error."""
    connection.load()
    connection.limit_http()

    def connect() -> MlflowClient:
        return connection.connect(record.tracking_uri)

    client, trouble = None, ""
    try:
        with connection.quiet_with_warnings():
            client = connect()
    except Exception as error:  # noqa: BLE001 - tried again by the sender
        trouble = one_line(error)
    sender = Sender(connect, record.tracking_uri, client)
    if trouble:
        sender.warn_once("down", "MLflow at %s cannot be opened now (%s)", record.tracking_uri, trouble)
    return MlflowRun(record, Target(record.run_id), sender)


def _safe(
    method: Callable[Concatenate[MlflowRun, P], None],
) -> Callable[Concatenate[MlflowRun, P], None]:
    """A method whose errors become one warning: tracking never ends a training."""

    @wraps(method)
    def safe(self: MlflowRun, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001
            self.warn_once(f"{method.__name__} cannot be tracked (%s); it is left out", one_line(error))

    return safe


class MlflowRun(Run):
    """A run in an MLflow store; everything goes through the thread of one sender."""

    def __init__(self, record: RunRecord, target: Target, sender: Sender, parent: MlflowRun | None = None) -> None:
        self.record = record if parent is None else None
        self._store = record
        self._target = target
        self._sender = sender
        self._parent = parent
        self._children: dict[str, MlflowRun] = {}
        self._seen: dict[str, set[int]] = {}
        self._last: dict[str, Point] = {}
        self._contexts: dict[tuple[str, str], str] = {}
        self._system_metrics: SystemMetrics | None = None
        self._finished = False

    @_safe
    def begin(self) -> None:  # noqa: D102
        self._set_status(lambda client, run_id: client.update_run(run_id, status="RUNNING"))

    @_safe
    def metrics(self, values: Mapping[str, float], step: int, timestamp: float | None = None) -> None:  # noqa: D102
        milliseconds = int((time.time() if timestamp is None else timestamp) * 1000)
        points = []
        for key, value in values.items():
            name, number = convert.name(key), self._number(key, value)
            seen = self._seen.setdefault(name, set())
            if number is None or step in seen:
                continue
            seen.add(step)
            self._last[name] = Point(self._target, name, number, milliseconds, int(step))
            points.append(self._last[name])
        self._sender.put(*points)

    @_safe
    def params(self, values: Mapping[str, object]) -> None:  # noqa: D102
        texts = {key: convert.as_text(value) for key, value in values.items()}
        self._put("set of parameters", lambda client, run_id: convert.log_params(client, run_id, texts))

    @_safe
    def tags(self, values: Mapping[str, object]) -> None:  # noqa: D102
        texts = convert.run_tags(values)
        self._put("set of tags", lambda client, run_id: convert.log_tags(client, run_id, texts))

    @_safe
    def text(self, text: str, artifact_file: str) -> None:  # noqa: D102
        self._put("file", lambda client, run_id: client.log_text(run_id, text, artifact_file))

    @_safe
    def json(self, value: Any, artifact_file: str) -> None:  # noqa: ANN401, D102
        self.text(convert.json_text(value), artifact_file)

    @_safe
    def artifact(self, path: str | Path, folder: str | None = None) -> None:  # noqa: D102
        source = Path(path).absolute()

        def send(client: MlflowClient, run_id: str) -> None:
            log = client.log_artifacts if source.is_dir() else client.log_artifact
            log(run_id, str(source), folder)

        self._put("file", send)

    @_safe
    def dataset(  # noqa: D102
        self,
        *,
        name: str,
        digest: str,
        source: str,
        context: str,
        profile: Mapping[str, object] | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        # MLflow keeps one input per name and digest in a run
        if self._contexts.setdefault((name, digest), context) != context:
            name = f"{name} ({context})"
        facts = json_format.dumps({**(profile or {}), "digest": digest}, default=str)
        schema = convert.dataset_schema(columns) if columns else None
        where = json_format.dumps({"uri": source[:_MAX_SOURCE]})

        def send(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            dataset = Dataset(
                name, digest[:_MAX_DIGEST], "local" if "://" not in source else "uri", where, schema, facts
            )
            tag = InputTag("mlflow.data.context", context)
            client.log_inputs(run_id, [DatasetInput(dataset, [tag])])

        self._put("data set", send)

    @_safe
    def model(  # noqa: D102
        self,
        module: nn.Module,
        name: str = "best_model",
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        files: Iterable[str | Path] = (),
    ) -> None:
        from bhive_mltf.tracking.logged_model import LoggedModelUpload

        stamped = {convert.name(key): self._stamped(key, value, step) for key, value in (metrics or {}).items()}
        upload = LoggedModelUpload(
            module,
            name,
            self._store.experiment_id,
            step=step,
            metrics=stamped,
            params=params or {},
            tags=tags or {},
            files=files,
        )
        self._put("model", upload.send, upload.discard)

    def _stamped(self, key: str, value: float, step: int) -> tuple[float, int]:
        """The value and its time; the same time as the run's own point, so that MLflow keeps one point of the two."""
        last = self._last.get(convert.name(key))
        if last is not None and last.step == step and last.value == float(value):
            return last.value, last.timestamp
        return float(value), int(time.time() * 1000)

    def nested(self, name: str) -> Run:  # noqa: D102
        if name not in self._children:
            target = ChildTarget(self._target, self._store.experiment_id, name)
            self._children[name] = MlflowRun(self._store, target, self._sender, self)
        return self._children[name]

    @_safe
    def start_system_metrics(self, node_id: str | None = None, interval: float = 10.0) -> None:  # noqa: D102
        with connection.quiet_with_warnings():
            from bhive_mltf.tracking.system_metrics import SystemMetrics
        if self._system_metrics is None:
            uri = self._store.tracking_uri
            self._system_metrics = SystemMetrics(self._store.run_id, uri, self.metrics, node_id, interval)

    @_safe
    def stop_system_metrics(self) -> None:  # noqa: D102
        if self._system_metrics is not None:
            self._system_metrics.stop()
            self._system_metrics = None

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:  # noqa: D102
        return self._sender.flush(timeout) == 0

    @_safe
    def finish(self, status: str | None = None, timeout: float = FLUSH_TIMEOUT) -> None:  # noqa: D102
        if self._finished:
            return
        self._finished = True
        for child in self._children.values():
            child.finish(status)
        self.stop_system_metrics()
        if status in _ENDED:
            end = int(time.time() * 1000)  # of the training, not of the delivery
            self._set_status(lambda client, run_id: client.set_terminated(run_id, status, end))
        elif status is not None:
            self._set_status(lambda client, run_id: client.update_run(run_id, status=status))
        if self._parent is None:
            self._report(self._sender.close(timeout))

    def _report(self, lost: Mapping[str, int]) -> None:
        if lost:
            self.warn_once(
                "of run %s at %s, this was not delivered: %s; the outputs of the training are complete without it",
                self._store.run_id,
                self._store.tracking_uri,
                ", ".join(f"{what}: {count}" for what, count in sorted(lost.items())),
            )

    def warn_once(self, message: str, *arguments: object) -> None:
        """Log a warning, once per message."""
        self._sender.warn_once(message, message, *arguments)

    def _number(self, key: str, value: object) -> float | None:
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            self._sender.warn_once(f"number {key}", "metric %r is no number (%s); it is left out", key, one_line(error))
            return None

    def _set_status(self, send: Callable[[MlflowClient, str], None]) -> None:
        if self._parent is not None or not self._store.external:
            self._put("status", send)

    def _put(
        self, what: str, send: Callable[[MlflowClient, str], None], discard: Callable[[], None] | None = None
    ) -> None:
        self._sender.put(Operation(self._target, what, send, discard))
