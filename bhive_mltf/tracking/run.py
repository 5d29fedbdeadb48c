"""The interface of a run for engine and tasks: it takes everything, and never fails or blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bhive_mltf.tracking.store import RunRecord

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

FLUSH_TIMEOUT = 30.0  # s


@dataclass(frozen=True)
class ModelArrays:
    """Signature and input example of a model.

    inputs, outputs : shape by name of array, -1 for a free axis; outputs are float32. example : of the inputs, by name.
    """

    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    example: Mapping[str, np.ndarray[Any, Any]]


class Run:
    """A run of a training; this base class takes everything and keeps nothing.

    No method waits for the network or raises because of it: all goes to the journal of the training (`journal/` in its
    directory), and is delivered from there by a thread of this process, or of a later one. As a context manager it
    delivers what is left, of earlier processes too, and leaves the status of the run alone, which is what tasks after
    the training want.

    The command makes the run (`prepare`, SCHEDULED when it waits for a job). Its owner, global rank 0, calls `begin`
    and at the end `finish(status)`; other processes call `finish()`. A run whose owner was killed is closed by
    `close_abandoned`.
    """

    record: RunRecord | None = None
    """Of a run in a store: `run_id` is empty while the store has not answered yet."""

    def begin(self) -> None:
        """Set the status to RUNNING, also of a run that waited for its job or had ended; called by its owner."""

    def metrics(self, values: Mapping[str, float], step: int, timestamp: float | None = None, of: str = "") -> None:
        """Values of metrics at a step; `timestamp` in seconds since 1970, now if None.

        The first value of a (name, step) wins, also over interruptions; NaN and infinities are taken. With `of`, what
        the values are of (a test set, say), the first one of each.
        """

    def params(self, values: Mapping[str, object]) -> None:
        """Parameters; the first value stays for ever, a long one is kept whole as `params/<name>.txt`."""

    def tags(self, values: Mapping[str, object]) -> None:
        """Tags; the last value stays."""

    def text(self, text: str, artifact_file: str) -> None:
        """Text as an artifact."""

    def json(self, value: Any, artifact_file: str) -> None:  # noqa: ANN401 - any JSON value
        """A JSON value as an artifact."""

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """A file or directory as an artifact; it must stay until it is sent, since it is read only then."""

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

    def report(self) -> None:
        """The report of the training (`report.html`) as it is now, beside its outputs and as an artifact."""

    def nested(self, name: str) -> Run:  # noqa: ARG002
        """A child of this run; made at its first use, found again by its name when a training goes on."""
        return NullRun()

    def start_system_metrics(self, node_id: str | None = None, interval: float = 10.0, root: int | None = None) -> None:
        """Sample this node every `interval` seconds (`MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL` wins).

        node_id : stands in the names of the metrics; None for MLflow's own names.
        root : id of the process whose tree belongs to the training, default this one.
        """

    def stop_system_metrics(self) -> None:
        """Stop sampling."""

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:  # noqa: ARG002
        """Wait until all is delivered, `timeout` seconds at most; whether it was."""
        return True

    def finish(self, status: str | None = None, timeout: float = FLUSH_TIMEOUT) -> None:
        """Deliver what is left and end; only the owner of the run gives a status.

        FINISHED, FAILED, KILLED, or SCHEDULED for a run that another process goes on with.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


class NullRun(Run):
    """Tracking that is off."""
