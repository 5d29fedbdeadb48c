"""Reaching an MLflow store: quietly, with limits, without a race when it is made; and what its errors mean.

mlflow is imported inside functions: `import mlflow` takes more than a second.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf import compat
from bhive_mltf.errors import LockedError, TrackingError
from bhive_mltf.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

# mlflow's own limits (120 s, 7 retries with growing pauses) would hold a training for minutes.
_HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_SHORT_HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
# MLflow's page then opens with the views for trained models, not with those for language models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_TRIES = 5
_LOCK_TIMEOUT = 30.0  # s
# a token may be renewed, a rate limit ends, a conflict is resolved
_PASSING = frozenset({401, 403, 408, 409, 429})
_CREDENTIALS = re.compile(r"//[^/\s]*@")
_TALKATIVE = ("mlflow", "alembic", "sqlalchemy", "urllib3")
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, TypeError, ValueError)


def load() -> None:
    """Import mlflow without its noise; no usage data is sent from a compute node unless the user asked for it."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
        os.environ.setdefault(name, "true")
    if not compat.has_sqlalchemy():
        # mlflow 3.13 and later open a store of files only when told so; mlflow-skinny has no other on this disk
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow  # noqa: F401


class _QuietThreads(logging.Filter):
    """Drops the lines of mlflow and of what it uses, in threads that asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not (getattr(self.thread, "quiet", False) and record.name.partition(".")[0] in _TALKATIVE)


_quiet_threads = _QuietThreads()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log lines of mlflow, alembic and urllib3 in this thread; other threads are left alone."""
    # added once: of a logger for its own lines (urllib3 tells each of its retries), of a handler for all below it
    logging.getLogger("urllib3.connectionpool").addFilter(_quiet_threads)
    for name in ("mlflow", "alembic", "sqlalchemy.engine"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_quiet_threads)
    before = getattr(_quiet_threads.thread, "quiet", False)
    _quiet_threads.thread.quiet = True
    try:
        yield
    finally:
        _quiet_threads.thread.quiet = before


@contextmanager
def quiet_with_warnings() -> Iterator[None]:
    """Like `quiet`, and without Python warnings; in the main thread only, since warning filters are the process's."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def limit_http() -> None:
    """Limit how long one request may take, unless the user has set it."""
    for name, value in _HTTP_LIMITS.items():
        os.environ.setdefault(name, value)


@contextmanager
def short_http() -> Iterator[None]:
    """Inside, a server that does not answer costs about ten seconds, unless the user has set it otherwise."""
    ours = {
        name: value for name, value in _SHORT_HTTP_LIMITS.items() if os.environ.get(name) in (None, _HTTP_LIMITS[name])
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def connect(uri: str) -> MlflowClient:
    """A client of the store; makes a SQLite store that does not exist yet. Two processes may do so at once."""
    from mlflow import MlflowClient

    path = store.sqlite_path(uri)
    if path is None:
        return MlflowClient(store.with_credentials(uri))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_name(f".{path.name}.lock")):
        for attempt in range(_TRIES):
            try:
                return MlflowClient(uri)
            except Exception:  # mlflow lets the errors of SQLAlchemy, alembic and sqlite3 through
                # another node may be making the tables: its lock is not seen here
                if attempt == _TRIES - 1:
                    raise
                time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock; where the file system has none, or after a while, go on without."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while time.monotonic() < deadline:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break
            else:
                break
        yield
    finally:
        os.close(handle)


def experiment_id(client: MlflowClient, name: str, location: str | None) -> str:
    """The id of an experiment, made with artifacts at `location` when it does not exist.

    Raises
    ------
    TrackingError : it was deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS))
        except Exception:
            # made by another process between the two calls
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {name!r} is deleted; restore it (`mlflow experiments restore`) or set"
            " MLFLOW_EXPERIMENT_NAME to another name"
        )
    return str(experiment.experiment_id)


class Failure(Enum):
    """DOWN: no answer, keep all and try later. REJECTED: will never be taken. UNCLEAR: worth some more tries."""

    DOWN = "down"
    REJECTED = "rejected"
    UNCLEAR = "unclear"


def classify(error: Exception) -> Failure:
    """The meaning of an error raised by a call of the MLflow client."""
    from mlflow.exceptions import MlflowException, RestException
    from requests import ConnectionError as NoConnection
    from requests import Timeout

    if isinstance(error, NoConnection | Timeout | LockedError):
        return Failure.DOWN
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        if status in _PASSING:
            return Failure.DOWN
        if status < 500:
            return Failure.REJECTED
        no_answer = not isinstance(error, RestException) and "API request to" in str(error)
        return Failure.DOWN if no_answer else Failure.UNCLEAR
    return Failure.REJECTED if isinstance(error, _MISSING) else Failure.UNCLEAR


def is_missing(error: Exception) -> bool:
    """Whether the store answered that the thing asked for does not exist."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def one_line(error: BaseException, limit: int = 200) -> str:
    """The error on one line of bounded length, without the credentials that a URL in it may hold."""
    text = _CREDENTIALS.sub("//", " ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."
