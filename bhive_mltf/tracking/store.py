"""Which MLflow store and run belong to a training (`run.json`), and how its page is opened. No mlflow here."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from bhive_mltf import compat
from bhive_mltf.errors import TrackingError
from bhive_mltf.files import atomic

FILE_NAME = "run.json"
DEFAULT_EXPERIMENT = "bhive_mltf"
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class RunRecord:
    """The run of one training, kept beside its other outputs.

    tracking_uri : the store, without user name and password.
    external : the run was given from outside; its status is never touched.
    parent_run_id : set for a training that became the child of a run given from outside.
    pending : what it takes to make the run, while the store has not answered yet (`run_id` is empty then); None once
        it exists. Made by `run_resolver.pending`.
    """

    tracking_uri: str
    experiment_id: str
    run_id: str
    external: bool = False
    parent_run_id: str | None = None
    pending: dict[str, str] | None = None

    def write(self, directory: Path) -> None:
        """Write the record to `directory` as a whole."""
        atomic.write_json(directory / FILE_NAME, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> RunRecord | None:
        """The record in `directory`, None if there is none.

        Raises
        ------
        TrackingError : the file is no record.
        """
        path = directory / FILE_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                **{field.name: content[field.name] for field in fields(cls) if field.name != "pending"},
                pending=content.get("pending"),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{path} cannot be read as the record of an MLflow run ({error!r}); remove it to begin a new run"
            raise TrackingError(message) from error


def tracking_uri(data_path: Path) -> str:
    """`MLFLOW_TRACKING_URI` if set, else the store below `data_path`: SQLite, or files where SQLAlchemy is missing."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if given:
        return absolute(given)
    here = data_path.absolute()
    return f"{_SQLITE}{here / 'mlflow.db'}" if compat.has_sqlalchemy() else (here / "mlruns").as_uri()


def absolute(uri: str) -> str:
    """The same store, named so that a process in another directory finds it."""
    path = sqlite_path(uri)
    if path is None or path.is_absolute():
        return uri
    return f"{_SQLITE}{path.absolute()}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store, None for any other."""
    path = uri.removeprefix(_SQLITE)
    return Path(path) if path != uri and path not in ("", ":memory:") else None


def is_server(uri: str) -> bool:
    """Whether the store is reached over HTTP."""
    return uri.startswith(("http://", "https://"))


def experiment_name() -> str:
    """`MLFLOW_EXPERIMENT_NAME` if set, else our own."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or DEFAULT_EXPERIMENT


def experiment_id() -> str:
    """`MLFLOW_EXPERIMENT_ID`, which wins over the name, as in mlflow; empty if not set."""
    return os.environ.get("MLFLOW_EXPERIMENT_ID", "").strip()


def artifact_location(uri: str, data_path: Path) -> str | None:
    """Where a new experiment keeps its artifacts; None leaves it to a server."""
    return None if is_server(uri) else (data_path.absolute() / "mlartifacts").as_uri()


def without_credentials(uri: str) -> str:
    """`uri` without user name and password, fit for files and messages."""
    if "@" not in uri or "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def with_credentials(uri: str) -> str:
    """`uri` with the credentials of `MLFLOW_TRACKING_URI`, if that names the same store."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return given if given and without_credentials(given) == uri else uri


def view_command(record: RunRecord, port: int = 5000) -> str:
    """What opens the page of a run: a command for a store on disk, the address of the run for a server."""
    if record.pending is not None:
        return f"not in {record.tracking_uri} yet: bhive-mltf tracking sync"
    page = f"#/experiments/{record.experiment_id}/runs/{record.run_id}"
    if is_server(record.tracking_uri):
        return f"{record.tracking_uri.rstrip('/')}/{page}"
    uri = shlex.quote(record.tracking_uri)
    return f"mlflow ui --backend-store-uri {uri} --port {port}  # then open http://127.0.0.1:{port}/{page}"
