"""The MLflow backend `mltf`: `mlflow run . --backend mltf --backend-config '{"profile": "a6000x4", "hours": 12}'`.

The command line of mlflow does not wait for a backend that is a plugin; `"wait": true` does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import RunStatus
from mlflow.exceptions import ExecutionException
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import SubmittedRun
from mlflow.projects.utils import fetch_and_validate_project

from bhive_mltf_client import sign_in
from bhive_mltf_client.errors import ClientError
from bhive_mltf_client.gateway import FINAL, Gateway
from bhive_mltf_client.tracking_auth import NAME

KEYS = (
    *("profile", "environment", "hours", "nodes", "ranks_per_node", "resume"),
    *("experiment", "name", "label", "allow", "wait"),
)
# mlflow's own, which every backend gets
_OF_MLFLOW = frozenset({"ENV_MANAGER", "SYNCHRONOUS", "DOCKER_ARGS", "STORAGE_DIR", "build_image", "docker_auth"})
_DEFAULT_EXPERIMENTS = (None, "", "0")
_STATUS = {
    "creating": RunStatus.SCHEDULED,
    "accepted": RunStatus.SCHEDULED,
    "preparing": RunStatus.SCHEDULED,
    "submitting": RunStatus.SCHEDULED,
    "queued": RunStatus.SCHEDULED,
    "running": RunStatus.RUNNING,
    "closing": RunStatus.RUNNING,
    "succeeded": RunStatus.FINISHED,
    "cancelled": RunStatus.KILLED,
    "failed": RunStatus.FAILED,
    "refused": RunStatus.FAILED,
}
CANCEL_WAIT_S = 90.0


class MltfSubmittedRun(SubmittedRun):
    """A job of the gateway, as mlflow sees it."""

    def __init__(self, gateway: Gateway, job: dict[str, Any]) -> None:
        super().__init__()
        self._gateway, self.job = gateway, str(job["id"])
        self._run_id = str(job["run_id"])

    @property
    def run_id(self) -> str:
        """The MLflow run, which the gateway has made."""
        return self._run_id

    def wait(self) -> bool:
        """Wait until the job is over; whether it did its work."""
        return bool(self._gateway.wait(self.job)["state"] == "succeeded")

    def get_status(self) -> int:
        """The status of the run, by the state of the job."""
        return int(_STATUS.get(self._gateway.show(self.job)["state"], RunStatus.RUNNING))

    def cancel(self) -> None:
        """End the job; comes back when its run is KILLED, or with an error after a while.

        Raises
        ------
        ExecutionException : the gateway has not confirmed the end.
        """
        self._gateway.cancel(self.job)
        if self._gateway.wait(self.job, CANCEL_WAIT_S)["state"] not in FINAL:
            raise ExecutionException(f"job {self.job} is being cancelled, and not over yet: look with 'show'")


class Backend(AbstractBackend):
    """Hands a project in to the gateway of the present sign-in."""

    def run(  # noqa: PLR0917 - of the base class
        self,
        project_uri: str,
        entry_point: str,
        params: dict[str, Any],
        version: str | None,
        backend_config: dict[str, Any],
        tracking_uri: str,  # noqa: ARG002 - the gateway says where runs are kept
        experiment_id: str | None,
    ) -> SubmittedRun:
        """Pack the project, hand it in, and point mlflow at the gateway's tracking server.

        Raises
        ------
        ExecutionException : the project or the configuration cannot be, the gateway refuses, or a job that is waited
            for did not do its work.
        """
        config = _checked(backend_config)
        if experiment_id not in _DEFAULT_EXPERIMENTS:
            raise ExecutionException(
                f'experiment {experiment_id} cannot be taken: give "experiment": NAME in the backend config'
            )
        try:
            folder = Path(fetch_and_validate_project(project_uri, version, entry_point, params or {}))
            gateway = Gateway()
            job = gateway.submit(folder, _request(entry_point, params, config), tuple(config.get("allow", ())))
            os.environ["MLFLOW_TRACKING_AUTH"] = NAME
            mlflow.set_tracking_uri(sign_in.fresh().tracking_url)
            submitted = MltfSubmittedRun(gateway, job)
            sys.stderr.write(
                f"job {submitted.job}, run {submitted.run_id}\nbhive-mltf-client logs -f {submitted.job}\n"
            )
            if config.get("wait"):
                _follow(gateway, submitted)
        except ClientError as error:
            raise ExecutionException(str(error)) from None
        return submitted


def _follow(gateway: Gateway, submitted: MltfSubmittedRun) -> None:
    from bhive_mltf_client.main import without_control

    for part in without_control(gateway.log(submitted.job, follow=True)):
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
    found = gateway.show(submitted.job)
    if found["state"] != "succeeded":
        raise ExecutionException(f"job {submitted.job} {found['state']}: {found['reason']}")


def _request(entry_point: str, params: dict[str, Any] | None, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "entry_point": entry_point,
        # from Python they are no strings
        "parameters": {str(name): str(value) for name, value in (params or {}).items()},
        **{name: config[name] for name in KEYS if name in config and name not in ("allow", "wait")},
    }


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    config = {name: value for name, value in given.items() if name not in _OF_MLFLOW}
    for name in config:
        if name not in KEYS:
            raise ExecutionException(f"`{name}` is no key of the backend config; there are {', '.join(KEYS)}")
    if not config.get("profile"):
        raise ExecutionException(
            "the backend config names no profile: give --backend-config '{\"profile\": NAME}';"
            " 'bhive-mltf-client profiles' lists them"
        )
    return config
