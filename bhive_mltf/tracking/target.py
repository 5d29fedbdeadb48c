"""The run that something is sent to: known by its id, or a child that is made at its first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_TAG = "mlflow.parentRunId"


class Target:
    """A run that exists."""

    def __init__(self, run_id: str) -> None:
        self._run_id: str | None = run_id

    def resolve(self, client: MlflowClient) -> str:  # noqa: ARG002 - a child needs it
        """The id of the run."""
        if self._run_id is None:
            raise AssertionError("a target without run id")
        return self._run_id


class ChildTarget(Target):
    """A child of another run, found by its name or made; both happen in the sending thread."""

    def __init__(self, parent: Target, experiment_id: str, name: str) -> None:
        self._run_id = None
        self._parent = parent
        self._experiment_id = experiment_id
        self._name = name

    def resolve(self, client: MlflowClient) -> str:
        """The id of the child; an ended one that is found runs again."""
        if self._run_id is None:
            parent = self._parent.resolve(client)
            name = self._name.replace("'", "\\'")
            found = client.search_runs(
                [self._experiment_id],
                f"tags.`{PARENT_TAG}` = '{parent}' and attributes.run_name = '{name}'",
                max_results=1,
            )
            if found:
                self._run_id = str(found[0].info.run_id)
                client.update_run(self._run_id, status="RUNNING")
            else:
                child = client.create_run(self._experiment_id, run_name=self._name, tags={PARENT_TAG: parent})
                self._run_id = str(child.info.run_id)
        return self._run_id
