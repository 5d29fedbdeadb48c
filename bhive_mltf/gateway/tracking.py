"""The few questions to the MLflow server, over its REST interface, each in the name of one person."""

from __future__ import annotations

import functools
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx

from bhive_mltf.gateway.errors import UpstreamError

TAG: Final = "mltf.submission"
TIMEOUT_S: Final = 15.0
Status = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]


class Tracking:
    """The server as seen by one person.

    Parameters
    ----------
    token : called for each request, so that it never runs out.
    """

    def __init__(self, url: str, token: Callable[[], str]) -> None:
        self._token, self._url = token, url
        base = f"{url}/api/2.0/mlflow/"
        self._client = httpx.Client(base_url=base, timeout=TIMEOUT_S, verify=_certificates())

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def experiment(self, name: str) -> str:
        """The id of an experiment, made where there is none.

        Raises
        ------
        UpstreamError : as for all questions here, the server does not answer, or refuses.
        """
        found = self.find_experiment(name)
        if found is None:
            # another request may make it between the two calls
            made = self._ask("POST", "experiments/create", {"name": name}, allowed=(400,))
            found = str(made["experiment_id"]) if "experiment_id" in made else self.find_experiment(name)
        if found is None:
            raise UpstreamError(f"the tracking server has no experiment {name!r}, and makes none: is it deleted")
        return found

    def run(self, experiment_id: str, submission: str, name: str, user: str, tags: Mapping[str, str]) -> str:
        """The run of a submission, found by its tag or made."""
        if found := self.find_run(experiment_id, submission):
            return found
        all_tags = {**tags, TAG: submission, "mlflow.user": user}
        made = self._ask(
            "POST",
            "runs/create",
            {
                "experiment_id": experiment_id,
                "run_name": name,
                "start_time": _milliseconds(time.time()),
                "tags": [{"key": key, "value": value} for key, value in all_tags.items()],
            },
        )
        return str(made["run"]["info"]["run_id"])

    def find_experiment(self, name: str) -> str | None:
        """The id of an experiment, None where there is none."""
        found = self._ask("GET", "experiments/get-by-name", {"experiment_name": name}, allowed=(404, 403))
        return str(found["experiment"]["experiment_id"]) if "experiment" in found else None

    def find_run(self, experiment_id: str, submission: str) -> str:
        """The run of a submission by its tag; empty where there is none."""
        wanted = {
            "experiment_ids": [experiment_id],
            "filter": f"tags.`{TAG}` = '{submission}'",
            "max_results": 1,
        }
        runs = self._ask("POST", "runs/search", wanted).get("runs", ())
        return str(runs[0]["info"]["run_id"]) if runs else ""

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Record parameters; the same values again change nothing."""
        rows = [{"key": key, "value": value} for key, value in params.items()]
        for first in range(0, len(rows), 100):
            self._ask("POST", "runs/log-batch", {"run_id": run_id, "params": rows[first : first + 100]})

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        rows = [{"key": key, "value": value[:5000]} for key, value in tags.items()]
        self._ask("POST", "runs/log-batch", {"run_id": run_id, "tags": rows})

    def log_text(self, run_id: str, name: str, text: str) -> None:
        """Keep a text as an artifact of a run; the same again changes nothing.

        Raises
        ------
        UpstreamError : the server does not answer, or keeps no artifacts itself.
        """
        info = self._ask("GET", "runs/get", {"run_id": run_id})["run"]["info"]
        place = urlsplit(str(info.get("artifact_uri", "")))
        if place.scheme != "mlflow-artifacts":
            raise UpstreamError(f"the tracking server hands out no artifacts: {place.scheme or 'nothing'}")
        address = f"{self._url}/api/2.0/mlflow-artifacts/artifacts/{place.path.strip('/')}/{name}"
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": "text/plain; charset=utf-8"}
        try:
            self._client.put(address, content=text.encode(), headers=headers).raise_for_status()
        except httpx.HTTPError as error:
            raise UpstreamError(f"the tracking server does not take {name} ({type(error).__name__})") from None

    def set_status(self, run_id: str, status: Status, ended: float | None = None) -> None:
        """Set the status of a run, and when it ended."""
        content: dict[str, Any] = {"run_id": run_id, "status": status}
        if ended is not None:
            content["end_time"] = _milliseconds(ended)
        self._ask("POST", "runs/update", content)

    def _ask(self, method: str, path: str, content: Mapping[str, Any], allowed: tuple[int, ...] = ()) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token()}"}
        given: dict[str, Any] = {"params": dict(content)} if method == "GET" else {"json": dict(content)}
        try:
            answer = self._client.request(method, path, headers=headers, **given)
            if answer.status_code in allowed:
                return {}
            answer.raise_for_status()
            found = answer.json()
        except httpx.HTTPStatusError as error:
            raise UpstreamError(f"the tracking server answers {error.response.status_code} to {path}") from None
        except (httpx.HTTPError, ValueError) as error:
            raise UpstreamError(f"the tracking server does not answer to {path} ({type(error).__name__})") from None
        return found if isinstance(found, dict) else {}


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Of the authorities that are trusted, read once: it takes longer than a question does."""
    made: ssl.SSLContext = httpx.create_ssl_context()
    return made


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
