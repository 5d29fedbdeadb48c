"""The MLflow run of a training, made or found by the command before any rank starts."""

from __future__ import annotations

import getpass
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bhive_mltf.errors import TrackingError
from bhive_mltf.tracking import connection, deliver, environment, store
from bhive_mltf.tracking.auth import without_secrets
from bhive_mltf.tracking.connection import is_missing, one_line
from bhive_mltf.tracking.journal import Journal
from bhive_mltf.tracking.run_resolver import DIRECTORY_TAG, make, one_maker, pending
from bhive_mltf.tracking.store import RunRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

Status = Literal["RUNNING", "SCHEDULED"]


@dataclass(frozen=True)
class _Wanted:
    """What `prepare` was asked for."""

    directory: Path
    data_path: Path
    name: str
    tags: Mapping[str, object]
    status: Status


def prepare(
    directory: str | Path,
    *,
    data_path: str | Path,
    run_name: str,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    status: Status = "RUNNING",
    tracking: bool = True,
) -> RunRecord | None:
    """Find or make the run of the training in `directory` and write its `run.json`.

    In this order: the run of `run.json` goes on; a run given from outside (`MLFLOW_RUN_ID`, an active run) is taken by
    the first training that finds it and becomes the parent of the runs of later ones; else a new run is made. Never
    raises and never calls `mlflow.start_run`. None when tracking is off or mlflow is missing.

    A store that does not answer now costs one warning and a few seconds: the record then says what run is to be made
    (`record.pending`, `run_id` empty), parameters and tags go to the journal, and the first process that delivers it
    makes the run. A run given from outside that cannot be asked becomes the parent of that one.

    tags : a run that goes on loses its tag `failure`. status : SCHEDULED for a training that waits for its job.
    """
    if not tracking:
        return None
    directory, params = Path(directory).absolute(), without_secrets(dict(params or {}))
    # a run that goes on has not failed
    begun = {"failure": ""} if (directory / store.FILE_NAME).exists() else {}
    all_tags = {DIRECTORY_TAG: str(directory), **without_secrets({**begun, **(tags or {})})}
    wanted = _Wanted(directory, Path(data_path), run_name, all_tags, status)
    record, journal = None, None
    try:
        journal = Journal(wanted.directory)
        record = _read(wanted.directory)
        connection.load()
        with connection.short_http(), connection.quiet_with_warnings():
            record, client = _continued(record, wanted) or _begun(wanted)
            record.write(wanted.directory)
            deliver.log_params(client, record.run_id, params)
            deliver.log_tags(client, record.run_id, wanted.tags)
    except ImportError as error:
        logger.warning("no tracking: %s; pip install 'bhive_mltf[tracking]', or pass --tracking False", one_line(error))
        return None
    except TrackingError as error:
        logger.warning("no tracking: %s", error)
    except Exception as error:  # noqa: BLE001 - tracking never ends a training
        uri = store.without_credentials(store.tracking_uri(wanted.data_path))
        outside = os.environ.get("MLFLOW_RUN_ID", "").strip() or None
        record = record or pending(uri, wanted.data_path, wanted.name, parent_run_id=outside)
        logger.warning(
            "MLflow at %s cannot be used (%s); the training goes on, and what it logs is kept in %s and sent when it"
            " answers; check MLFLOW_TRACKING_URI, or pass --tracking False",
            store.without_credentials(record.tracking_uri),
            one_line(error),
            wanted.directory / "journal",
        )
        if journal is not None:
            _note(record, wanted, params, journal)
    finally:
        if journal is not None:
            journal.close()
    return record


def _note(record: RunRecord, wanted: _Wanted, params: Mapping[str, object], journal: Journal) -> None:
    """Keep for later what the store did not take."""
    try:
        record.write(wanted.directory)
        journal.append("status", status=wanted.status)
        tags = {**(_first_tags(wanted) if record.pending else {}), **wanted.tags}
        journal.append("tags", values=deliver.run_tags(tags))
        journal.append("params", values={key: deliver.as_text(value) for key, value in params.items()})
    except Exception as error:  # noqa: BLE001 - tracking never ends a training
        logger.warning("parameters and tags of %s are not tracked (%s)", wanted.directory, one_line(error))


def _read(directory: Path) -> RunRecord | None:
    try:
        return RunRecord.read(directory)
    except TrackingError as error:
        logger.warning("%s; a new run is made", error)
        return None


def _continued(record: RunRecord | None, wanted: _Wanted) -> tuple[RunRecord, MlflowClient] | None:
    """The run of an earlier command, running again; None if it is gone."""
    if record is None:
        return None
    current = store.without_credentials(store.tracking_uri(wanted.data_path))
    if record.pending is not None:
        client = connection.connect(current)
        with one_maker(wanted.directory):
            return make(client, replace(record, tracking_uri=current), _first_tags(wanted)), client
    silent: Exception | None = None
    for uri in dict.fromkeys((current, record.tracking_uri)):
        try:
            found = _find(uri, record.run_id)
        except Exception as error:  # noqa: BLE001 - the other store may have it
            silent, found = error, None
        if found is not None:
            client, status = found
            if not record.external and status != wanted.status:
                client.update_run(record.run_id, status=wanted.status)
            return replace(record, tracking_uri=uri), client
    if silent is not None:
        raise silent
    logger.warning(
        "run %s of %s does not exist any more in %s; a new run is made",
        record.run_id,
        wanted.directory,
        record.tracking_uri,
    )
    return None


def _find(uri: str, run_id: str) -> tuple[MlflowClient, str] | None:
    """A client and the status of a run that exists there and is not deleted."""
    path = store.sqlite_path(uri)
    if path is not None and not path.exists():
        return None
    client = connection.connect(uri)
    try:
        run = client.get_run(run_id)
    except Exception as error:
        if is_missing(error):
            return None
        raise
    return (client, str(run.info.status)) if run.info.lifecycle_stage == "active" else None


def _begun(wanted: _Wanted) -> tuple[RunRecord, MlflowClient]:
    """A run for a training that has none yet."""
    uri = store.without_credentials(store.tracking_uri(wanted.data_path))
    given = _given_from_outside(uri)
    if given is None:
        client = connection.connect(uri)
        return _create(client, pending(uri, wanted.data_path, wanted.name), wanted), client
    uri, run_id = given
    client = connection.connect(uri)
    outside = client.get_run(run_id)
    record = RunRecord(uri, str(outside.info.experiment_id), run_id, external=True)
    owner = outside.data.tags.get(DIRECTORY_TAG)
    if owner is None:
        client.set_tag(run_id, DIRECTORY_TAG, str(wanted.directory))
        # another training may have found it at the same time; the last one to write has it
        owner = client.get_run(run_id).data.tags.get(DIRECTORY_TAG)
    if owner == str(wanted.directory):
        return record, client
    child = replace(pending(uri, wanted.data_path, wanted.name, run_id), experiment_id=record.experiment_id)
    return _create(client, child, wanted), client


def _given_from_outside(uri: str) -> tuple[str, str] | None:
    """(store, id) of a run that the user has opened around this command and that exists."""
    import mlflow

    active = mlflow.active_run()
    if active is not None:
        return store.absolute(mlflow.get_tracking_uri()), str(active.info.run_id)
    run_id = os.environ.get("MLFLOW_RUN_ID", "").strip()
    if not run_id:
        return None
    if _find(uri, run_id) is None:
        logger.warning("MLFLOW_RUN_ID names run %s, which does not exist in %s; a new run is made", run_id, uri)
        return None
    return uri, run_id


def _create(client: MlflowClient, record: RunRecord, wanted: _Wanted) -> RunRecord:
    """A new run, as a pending record wants it."""
    made = make(client, record, _first_tags(wanted))
    if wanted.status != "RUNNING":
        client.update_run(made.run_id, status=wanted.status)
    return made


def _first_tags(wanted: _Wanted) -> dict[str, str]:
    """Tags with which a run is made: MLflow's own, and that of the training."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL" if wanted.status == "RUNNING" else "JOB",
    }
    commit = environment.git_state().get("commit")
    git = {"mlflow.source.git.commit": str(commit)} if commit else {}
    return deliver.run_tags({**tags, **git, DIRECTORY_TAG: str(wanted.directory)})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
