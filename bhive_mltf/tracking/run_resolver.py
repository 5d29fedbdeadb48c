"""The run of a training and its children by id: made when the store first answers, found again later."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.errors import TrackingError
from bhive_mltf.tracking import connection, store
from bhive_mltf.tracking.journal import folder_of
from bhive_mltf.tracking.store import RunRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
DIRECTORY_TAG = "bhive_mltf.directory"  # on every run; on one given from outside it says which training uses it
TOKEN_TAG = "bhive_mltf.token"  # noqa: S105 - the name of a tag
_MAKING_ENDS = 60.0  # s


def pending(uri: str, data_path: Path, run_name: str, parent_run_id: str | None = None) -> RunRecord:
    """The record of a run that still has to be made, with all that this takes; found again by its token."""
    wanted = {
        "run_name": run_name,
        "token": secrets.token_hex(12),
        "experiment": store.experiment_name(),
        "experiment_id": store.experiment_id(),
        "artifact_location": store.artifact_location(uri, data_path) or "",
    }
    return RunRecord(uri, "", "", parent_run_id=parent_run_id, pending=wanted)


def make(client: MlflowClient, record: RunRecord, tags: Mapping[str, str]) -> RunRecord:
    """Make the run of a pending record, unless it was made already and that was not noted.

    tags : more tags of a new run.

    Raises
    ------
    TrackingError : the experiment was deleted.
    """
    wanted = record.pending or {}
    experiment = record.experiment_id or wanted["experiment_id"]
    if not experiment:
        experiment = connection.experiment_id(client, wanted["experiment"], wanted["artifact_location"] or None)
    found = client.search_runs([experiment], f"tags.`{TOKEN_TAG}` = '{wanted['token']}'", max_results=1)
    if found:
        run = found[0]
    else:
        parent = {PARENT_TAG: record.parent_run_id} if record.parent_run_id else {}
        own = {TOKEN_TAG: wanted["token"], **parent, **tags}
        run = client.create_run(experiment, run_name=wanted["run_name"], tags=own)
    return replace(record, experiment_id=str(experiment), run_id=str(run.info.run_id), pending=None)


class Runs:
    """The run of a training directory and its children, made where they do not exist yet."""

    def __init__(self, directory: Path, record: RunRecord) -> None:
        self.directory, self.record = directory, record
        self._children: dict[str, str] = {}

    def resolve(self, client: MlflowClient, child: str = "") -> str:
        """The id of the run, or of a child; what does not exist is made, a child that had ended runs again."""
        if self.record.pending is not None:
            with one_maker(self.directory):
                self._make(client)
        if not child:
            return self.record.run_id
        if child not in self._children:
            with one_maker(self.directory):
                self._children[child] = self._find_child(client, child)
        return self._children[child]

    def _make(self, client: MlflowClient) -> None:
        # another process may have made it meanwhile
        there = RunRecord.read(self.directory)
        if there is None:
            raise TrackingError(f"{self.directory} has no record of its run any more")
        if there.pending is not None:
            there = make(client, there, {DIRECTORY_TAG: str(self.directory)})
            there.write(self.directory)
        self.record = there

    def _find_child(self, client: MlflowClient, name: str) -> str:
        parent, experiment_id = self.record.run_id, self.record.experiment_id
        escaped = name.replace("'", "\\'")
        found = client.search_runs(
            [experiment_id], f"tags.`{PARENT_TAG}` = '{parent}' and attributes.run_name = '{escaped}'", max_results=1
        )
        if found:
            run_id = str(found[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
            return run_id
        return str(client.create_run(experiment_id, run_name=name, tags={PARENT_TAG: parent}).info.run_id)


@contextmanager
def one_maker(directory: Path) -> Iterator[None]:
    """Inside, no other process makes a run or model of this training: two that look at once would both find none."""
    from bhive_mltf.files.lock import DirectoryLock

    with ExitStack() as stack:
        with suppress(OSError):  # a full disk
            stack.enter_context(DirectoryLock(folder_of(directory), wait_s=_MAKING_ENDS))
        yield
