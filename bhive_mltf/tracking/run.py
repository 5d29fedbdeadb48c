"""The run of a training, for engine and tasks: what is logged goes to its journal, and from there to MLflow."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, Self

from bhive_mltf.files import atomic
from bhive_mltf.tracking import deliver
from bhive_mltf.tracking.auth import without_secrets
from bhive_mltf.tracking.connection import one_line
from bhive_mltf.tracking.deliver import metric_name
from bhive_mltf.tracking.journal import Journal, folder_of
from bhive_mltf.tracking.sender import Sender
from bhive_mltf.tracking.store import RunRecord

if TYPE_CHECKING:
    from torch import nn

    from bhive_mltf.tracking.logged_model import ModelArrays
    from bhive_mltf.tracking.system.sampler import Sampler

FLUSH_TIMEOUT = 30.0  # s
P = ParamSpec("P")


def _safe(method: Callable[Concatenate[Run, P], None]) -> Callable[Concatenate[Run, P], None]:
    """A method that does nothing where tracking is off, and whose errors become one warning."""

    @wraps(method)
    def safe(self: Run, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.is_on:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - tracking never ends a training
            self.warn_once(f"{method.__name__} cannot be tracked (%s); it is left out", one_line(error))

    return safe


class Run:
    """A run of a training, or a child of it.

    No method waits for the network or raises because of it: all goes to the journal of the training (`journal/` in its
    directory), and is delivered from there by a thread of this process, or of a later one. As a context manager it
    delivers what is left, of earlier processes too, and leaves the status of the run alone, which is what tasks after
    the training want.

    The command makes the run (`prepare`, SCHEDULED when it waits for a job). Its owner, global rank 0, calls `begin`
    and at the end `finish(status)`; other processes call `finish()`. A run whose owner was killed is closed by
    `close_abandoned`.

    child : name of a child; empty for the run itself.
    """

    is_on: ClassVar[bool] = True

    def __init__(self, journal: Journal, sender: Sender, child: str = "") -> None:
        self._journal = journal
        self._sender = sender
        self._child = child
        self._children: dict[str, Run] = {}
        self._contexts: dict[tuple[str, str], str] = {}
        self._system_metrics: Sampler | None = None
        self._finished = False

    @property
    def record(self) -> RunRecord | None:
        """Of the run in its store, with an empty `run_id` while that has not answered yet; None for a child."""
        return None if self._child else self._sender.runs.record

    @_safe
    def begin(self) -> None:
        """Set the status to RUNNING, also of a run that waited for its job or had ended; called by its owner."""
        self._set_status("RUNNING")

    @_safe
    def metrics(self, values: Mapping[str, float], step: int, timestamp: float | None = None, of: str = "") -> None:
        """Values of metrics at a step; `timestamp` in seconds since 1970, now if None.

        The first value of a (name, step) wins, also over interruptions; NaN and infinities are taken. With `of`, what
        the values are of (a test set, say), the first one of each.
        """
        milliseconds = int((time.time() if timestamp is None else timestamp) * 1000)
        numbers = {metric_name(key): self._number(key, value) for key, value in values.items()}
        good = {key: value for key, value in numbers.items() if value is not None}
        self._journal.metrics(good, int(step), milliseconds, child=self._child, of=of)

    @_safe
    def params(self, values: Mapping[str, object]) -> None:
        """Parameters; the first value stays for ever, a long one is kept whole as `params/<name>.txt`."""
        self._put("params", values={key: deliver.as_text(value) for key, value in values.items()})

    @_safe
    def tags(self, values: Mapping[str, object]) -> None:
        """Tags; the last value stays."""
        found = deliver.run_tags(values)
        try:
            self._put("tags", values=found)
        except OSError:  # a full disk must not keep the reason why a run has failed
            if self._child:
                raise
            self._sender.in_memory.append({"kind": "tags", "values": without_secrets(found)})

    @_safe
    def text(self, text: str, artifact_file: str) -> None:
        """Text as an artifact."""
        self._put("text", text=text, file=artifact_file)

    @_safe
    def json(self, value: Any, artifact_file: str) -> None:  # noqa: ANN401 - any JSON value
        """A JSON value as an artifact, indented; what JSON does not know is written as text."""
        self.text(json.dumps(value, indent=2, default=str), artifact_file)

    @_safe
    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """A file or directory as an artifact; it must stay until it is sent, since it is read only then."""
        self._put("artifact", path=str(Path(path).absolute()), folder=folder)

    @_safe
    def dataset(
        self,
        *,
        name: str,
        digest: str,
        source: str,
        context: str,
        profile: Mapping[str, object] | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """A data set as input of the run.

        context : "training", "validation" or "test".
        source : directory or URL; recorded, never read.
        profile : numbers about it, such as `n_jets`; the whole digest is added, since MLflow keeps 36 characters.
        columns : name -> type (`float`, `double`, `long`, ...).
        """
        # MLflow keeps one input per name and digest in a run
        if self._contexts.setdefault((name, digest), context) != context:
            name = f"{name} ({context})"
        about = {"name": name, "digest": digest, "source": source, "context": context}
        self._put("dataset", **about, profile=profile, columns=columns)

    @_safe
    def model(
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
        """The module as a logged model of the run; copied and serialised at once, sent later.

        files : kept beside the model under `extra_files/`. arrays : its signature and input example.
        """
        from bhive_mltf.tracking.logged_model import serialise

        folder = f"models/{secrets.token_hex(8)}"
        serialise(module, folder_of(self._journal.directory) / folder, files, arrays)
        self._put_model(folder, name, step=step, metrics=metrics, params=params, tags=tags)

    @_safe
    def saved_model(
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
        """An MLflow model that lies in `folder` as a logged model of the run; copied at once, sent later.

        register : also a version of the registered model of this name; alias : of that version.
        """
        kept = f"models/{secrets.token_hex(8)}"
        with atomic.replace_directory(folder_of(self._journal.directory) / kept) as temporary:
            shutil.copytree(folder, temporary / "model")
        self._put_model(
            kept, name, step=step, metrics=metrics, params=params, tags=tags, register=register, alias=alias
        )

    def _put_model(
        self,
        folder: str,
        name: str,
        *,
        step: int,
        metrics: Mapping[str, float] | None,
        params: Mapping[str, object] | None,
        tags: Mapping[str, object] | None,
        **registration: str,
    ) -> None:
        self._put(
            "model",
            folder=folder,
            name=deliver.model_name(name),
            step=step,
            **{key: value for key, value in registration.items() if value},
            metrics={key: self._stamped(metric_name(key), value, step) for key, value in (metrics or {}).items()},
            params={metric_name(k): deliver.as_text(v)[: deliver.MAX_PARAM] for k, v in (params or {}).items()},
            tags=deliver.run_tags(tags or {}),
        )

    def _stamped(self, key: str, value: float, step: int) -> tuple[float, int]:
        """The run's own point if it has one, so that MLflow keeps one of the two; it may be of an earlier process."""
        return self._journal.find(key, step) or (float(value), int(time.time() * 1000))

    @_safe
    def report(self) -> None:
        """The report of the training (`report.html`) as it is now, beside its outputs and as an artifact."""
        from bhive_mltf.tracking.report import page

        self.artifact(page.write(self._journal.directory))

    def nested(self, name: str) -> Run:
        """A child of this run; made at its first use, found again by its name when a training goes on."""
        if name not in self._children:
            self._children[name] = Run(self._journal, self._sender, name)
        return self._children[name]

    @_safe
    def start_system_metrics(self, node_id: str | None = None, interval: float = 10.0, root: int | None = None) -> None:
        """Sample this node every `interval` seconds (`MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL` wins).

        node_id : stands in the names of the metrics; None for MLflow's own names.
        root : id of the process whose tree belongs to the training, default this one.
        """
        from bhive_mltf.tracking.system.sampler import Sampler

        if self._system_metrics is None:
            self._system_metrics = Sampler(self.metrics, self._journal, node=node_id, interval=interval, root=root)

    @_safe
    def stop_system_metrics(self) -> None:
        """Stop sampling."""
        if self._system_metrics is not None:
            self._system_metrics.stop()
            self._system_metrics = None

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Wait until all is delivered, `timeout` seconds at most; whether it was."""
        return self._sender.flush(timeout)

    @_safe
    def finish(self, status: str | None = None, timeout: float = FLUSH_TIMEOUT) -> None:
        """Deliver what is left and end; only the owner of the run gives a status.

        FINISHED, FAILED, KILLED, or SCHEDULED for a run that another process goes on with.
        """
        if self._finished:
            return
        self._finished = True
        for child in self._children.values():
            child.finish(status)
        self.stop_system_metrics()
        if status is not None:
            self._end(status)
        if not self._child:
            self._report(*self._sender.close(timeout))
            self._journal.close()

    def _end(self, status: str) -> None:
        now = int(time.time() * 1000)  # the end of the training, not of the delivery
        try:
            self._set_status(status, time=now)
        except OSError:  # a full disk must not leave a run RUNNING; a child of it says nothing
            if not self._child:
                self._sender.in_memory.append({"kind": "status", "status": status, "time": now})

    def _report(self, left: Counter[str], refused: Counter[str]) -> None:
        run, folder = self._sender.runs.record, folder_of(self._journal.directory)
        if any(record["kind"] == "status" for record in self._sender.in_memory):
            self.warn_once(
                "run %s at %s could not be told that it ended, nor could its journal in %s: make room, then type the"
                " command again",
                run.run_id,
                run.tracking_uri,
                folder,
            )
        if left:
            self.warn_once(
                "of run %s at %s, this is not delivered yet: %s; it is kept in %s, and sent by the next task on this"
                " training or by 'bhive-mltf tracking sync'",
                run.run_id or "(not made yet)",
                run.tracking_uri,
                _listed(left),
                folder,
            )
        if refused:
            self.warn_once(
                "of run %s at %s, this was refused and not delivered: %s; the outputs of the training are complete"
                " without it",
                run.run_id,
                run.tracking_uri,
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
        if self._child or not self._sender.runs.record.external:
            self._put("status", status=status, **end)

    def _put(self, kind: str, **content: object) -> None:
        about = {"child": self._child} if self._child else {}
        self._journal.append(kind, **content, **about)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


class NullRun(Run):
    """Tracking that is off: takes everything and keeps nothing."""

    is_on = False
    record = None

    def __init__(self) -> None:
        """Without a journal."""

    def nested(self, name: str) -> Run:  # noqa: ARG002, D102
        return self

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:  # noqa: ARG002, D102
        return True


def _listed(found: Counter[str]) -> str:
    return ", ".join(f"{what}: {count}" for what, count in sorted(found.items()))
