"""The run that MLflow keeps: what is logged goes to the journal, and from there to the store."""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from bhive_mltf.errors import TrackingError
from bhive_mltf.files import atomic
from bhive_mltf.tracking import connection, deliver
from bhive_mltf.tracking.auth import without_secrets
from bhive_mltf.tracking.connection import one_line
from bhive_mltf.tracking.deliver import metric_name
from bhive_mltf.tracking.journal import Journal, folder_of
from bhive_mltf.tracking.run import FLUSH_TIMEOUT, ModelArrays, NullRun, Run
from bhive_mltf.tracking.run_resolver import Runs
from bhive_mltf.tracking.sender import Sender
from bhive_mltf.tracking.store import RunRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import nn

    from bhive_mltf.tracking.system.sampler import Sampler

logger = logging.getLogger(__name__)
P = ParamSpec("P")


def attach(directory: str | Path, tracking: bool = True) -> Run:
    """The run of a training directory; a NullRun when tracking is off or the directory has no run.

    Any process that sees the directory may attach; each writes a journal file of its own and delivers all files. What
    an earlier process could not deliver goes first.
    """
    if not tracking:
        return NullRun()
    try:
        record = RunRecord.read(Path(directory))
        if record is None:
            return NullRun()
        return _open(Path(directory).absolute(), record)
    except TrackingError as error:
        logger.warning("tracking is off: %s", error)
    except ImportError as error:
        logger.warning(
            "tracking is off: %s; pip install 'bhive_mltf[tracking]', or pass --tracking False", one_line(error)
        )
    except Exception as error:  # noqa: BLE001 - tracking never ends a training
        logger.warning("tracking is off: the run in %s cannot be opened (%s)", directory, one_line(error))
    return NullRun()


def _open(directory: Path, record: RunRecord) -> MlflowRun:
    """The run of a training directory; a store that does not answer is no error.

    Raises
    ------
    ImportError : mlflow is not installed.
    """
    # here and not in the sending thread: two threads that import at once can see half-made modules
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
    sender = Sender(Runs(directory, record), connect, record.tracking_uri, client)
    if trouble:
        sender.warn_once("down", "MLflow at %s cannot be opened now (%s)", record.tracking_uri, trouble)
    return MlflowRun(record, Journal(directory), sender)


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
    """A run in an MLflow store; everything goes to the journal, and from there through the thread of one sender."""

    def __init__(self, record: RunRecord, journal: Journal, sender: Sender, parent: MlflowRun | None = None) -> None:
        self._store = record
        self._journal = journal
        self._sender = sender
        self._parent = parent
        self._name = ""  # of a child
        self._children: dict[str, MlflowRun] = {}
        self._contexts: dict[tuple[str, str], str] = {}
        self._system_metrics: Sampler | None = None
        self._finished = False

    @property
    def record(self) -> RunRecord | None:  # type: ignore[override]
        """The record, with the id of the run as soon as it is made; None for a child."""
        return self._sender.runs.record if self._parent is None else None

    @_safe
    def begin(self) -> None:  # noqa: D102
        self._set_status("RUNNING")

    @_safe
    def metrics(  # noqa: D102
        self, values: Mapping[str, float], step: int, timestamp: float | None = None, of: str = ""
    ) -> None:
        milliseconds = int((time.time() if timestamp is None else timestamp) * 1000)
        numbers = {metric_name(key): self._number(key, value) for key, value in values.items()}
        good = {key: value for key, value in numbers.items() if value is not None}
        self._journal.metrics(good, int(step), milliseconds, child=self._name, of=of)

    @_safe
    def params(self, values: Mapping[str, object]) -> None:  # noqa: D102
        self._put("params", values={key: deliver.as_text(value) for key, value in values.items()})

    @_safe
    def tags(self, values: Mapping[str, object]) -> None:  # noqa: D102
        found = deliver.run_tags(values)
        try:
            self._put("tags", values=found)
        except OSError:  # a full disk must not keep the reason why a run has failed
            if self._parent is not None:
                raise
            self._sender.in_memory.append({"kind": "tags", "values": without_secrets(found)})

    @_safe
    def text(self, text: str, artifact_file: str) -> None:  # noqa: D102
        self._put("text", text=text, file=artifact_file)

    @_safe
    def json(self, value: Any, artifact_file: str) -> None:  # noqa: ANN401, D102
        self.text(deliver.json_text(value), artifact_file)

    @_safe
    def artifact(self, path: str | Path, folder: str | None = None) -> None:  # noqa: D102
        self._put("artifact", path=str(Path(path).absolute()), folder=folder)

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
        about = {"name": name, "digest": digest, "source": source, "context": context}
        self._put("dataset", **about, profile=profile, columns=columns)

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
        arrays: ModelArrays | None = None,
    ) -> None:
        from bhive_mltf.tracking.logged_model import serialise

        folder = f"models/{secrets.token_hex(8)}"
        serialise(module, folder_of(self._journal.directory) / folder, files, arrays)
        self._put_model(folder, name, step, {"metrics": metrics, "params": params, "tags": tags})

    @_safe
    def saved_model(  # noqa: D102
        self,
        folder: str | Path,
        name: str,
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        register: str = "",
        alias: str = "",
    ) -> None:
        kept = f"models/{secrets.token_hex(8)}"
        with atomic.replace_directory(folder_of(self._journal.directory) / kept) as temporary:
            shutil.copytree(folder, temporary / "model")
        about = {"metrics": metrics, "params": params, "tags": tags}
        self._put_model(kept, name, step, about, register=register, alias=alias)

    def _put_model(
        self,
        folder: str,
        name: str,
        step: int,
        about: Mapping[str, Mapping[str, Any] | None],
        **registration: str,
    ) -> None:
        metrics, params, tags = (about[key] or {} for key in ("metrics", "params", "tags"))
        self._put(
            "model",
            folder=folder,
            name=deliver.model_name(name),
            step=step,
            **{key: value for key, value in registration.items() if value},
            metrics={key: self._stamped(metric_name(key), value, step) for key, value in metrics.items()},
            params={metric_name(k): deliver.as_text(v)[: deliver.MAX_PARAM] for k, v in params.items()},
            tags=deliver.run_tags(tags),
        )

    def _stamped(self, key: str, value: float, step: int) -> tuple[float, int]:
        """The run's own point if it has one, so that MLflow keeps one of the two; it may be of an earlier process."""
        return self._journal.find(key, step) or (float(value), int(time.time() * 1000))

    @_safe
    def report(self) -> None:  # noqa: D102
        from bhive_mltf.tracking.report import page

        self.artifact(page.write(self._journal.directory))

    def nested(self, name: str) -> Run:  # noqa: D102
        if name not in self._children:
            child = MlflowRun(self._store, self._journal, self._sender, self)
            child._name = name
            self._children[name] = child
        return self._children[name]

    @_safe
    def start_system_metrics(  # noqa: D102
        self, node_id: str | None = None, interval: float = 10.0, root: int | None = None
    ) -> None:
        from bhive_mltf.tracking.system.sampler import Sampler

        if self._system_metrics is None:
            self._system_metrics = Sampler(self.metrics, self._journal, node=node_id, interval=interval, root=root)

    @_safe
    def stop_system_metrics(self) -> None:  # noqa: D102
        if self._system_metrics is not None:
            self._system_metrics.stop()
            self._system_metrics = None

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:  # noqa: D102
        return self._sender.flush(timeout)

    @_safe
    def finish(self, status: str | None = None, timeout: float = FLUSH_TIMEOUT) -> None:  # noqa: D102
        if self._finished:
            return
        self._finished = True
        for child in self._children.values():
            child.finish(status)
        self.stop_system_metrics()
        if status is not None:
            self._end(status)
        if self._parent is None:
            self._report(*self._sender.close(timeout))
            self._journal.close()

    def _end(self, status: str) -> None:
        now = int(time.time() * 1000)  # the end of the training, not of the delivery
        try:
            self._set_status(status, time=now)
        except OSError:  # a full disk must not leave a run RUNNING; a child of it says nothing
            if self._parent is None:
                self._sender.in_memory.append({"kind": "status", "status": status, "time": now})

    def _report(self, left: Counter[str], refused: Counter[str]) -> None:
        if any(record["kind"] == "status" for record in self._sender.in_memory):
            self.warn_once(
                "run %s at %s could not be told that it ended, nor could its journal in %s: make room, then type the"
                " command again",
                self._sender.runs.record.run_id,
                self._store.tracking_uri,
                folder_of(self._journal.directory),
            )
        if left:
            self.warn_once(
                "of run %s at %s, this is not delivered yet: %s; it is kept in %s, and sent by the next task on this"
                " training or by 'bhive-mltf tracking sync'",
                self._sender.runs.record.run_id or "(not made yet)",
                self._store.tracking_uri,
                _listed(left),
                folder_of(self._journal.directory),
            )
        if refused:
            self.warn_once(
                "of run %s at %s, this was refused and not delivered: %s; the outputs of the training are complete"
                " without it",
                self._sender.runs.record.run_id,
                self._store.tracking_uri,
                _listed(refused),
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

    def _set_status(self, status: str, **end: int) -> None:
        if self._parent is not None or not self._store.external:
            self._put("status", status=status, **end)

    def _put(self, kind: str, **content: object) -> None:
        about = {"child": self._name} if self._name else {}
        self._journal.append(kind, **content, **about)


def _listed(found: Counter[str]) -> str:
    return ", ".join(f"{what}: {count}" for what, count in sorted(found.items()))
