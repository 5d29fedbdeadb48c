"""Who may ask the MLflow server what: the authorisation function of its `basic-auth` application.

Set as `authorization_function=bhive_mltf.gateway.mlflow_auth:authorize` in the file that `MLFLOW_AUTH_CONFIG_PATH`
names, with `default_permission=NO_PERMISSIONS`. MLflow's own permissions keep people apart; this function checks the
gateway's tokens, lets through only the routes listed here, and holds the token of a job to the experiment of that job.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any, Final

from flask import Response, g, request
from werkzeug.datastructures import Authorization

from bhive_mltf.gateway import mlflow_browser, mlflow_tokens

_KINDS: Final = frozenset({"user", "job", "gateway"})
_LARGEST_BODY: Final = 16 * 2**20

_API: Final = r"/(?:api|ajax-api)/2\.0/mlflow"
_ARTIFACTS: Final = r"/(?:api|ajax-api)/2\.0/mlflow-artifacts"
_RUN_WORDS: Final = (
    "create|update|search|log-metric|log-parameter|log-batch|set-tag|delete-tag|log-inputs|log-model|outputs"
)
# Method and whole path; what is not listed is refused, new routes of MLflow included.
_OF_A_JOB: Final = tuple(
    (methods, re.compile(pattern))
    for methods, pattern in (
        (("POST",), rf"{_API}/runs/(?:{_RUN_WORDS})"),
        (("GET",), rf"{_API}/(?:experiments|runs)/get"),
        (("GET",), rf"{_API}/metrics/get-history"),
        (("GET",), rf"{_API}/artifacts/list"),
        (("POST",), rf"{_API}/logged-models(?:/search)?"),
        (("GET", "PATCH"), rf"{_API}/logged-models/[\w-]+"),
        (("POST",), rf"{_API}/logged-models/[\w-]+/params"),
        (("PATCH",), rf"{_API}/logged-models/[\w-]+/tags"),
        (("GET",), rf"{_API}/logged-models/[\w-]+/artifacts/directories"),
        (("GET",), rf"{_ARTIFACTS}/artifacts"),
        (("GET", "PUT"), rf"{_ARTIFACTS}/artifacts/[^/].*"),
        (("POST",), rf"{_ARTIFACTS}/mpu/(?:create|complete|abort)/[^/].*"),
    )
)
_OF_A_PERSON: Final = (
    *_OF_A_JOB,
    *(
        (methods, re.compile(pattern))
        for methods, pattern in (
            (("GET", "POST"), rf"{_API}/(?:experiments|runs|registered-models|model-versions)/[\w-]+"),
            (("PATCH", "DELETE"), rf"{_API}/(?:registered-models|model-versions)/[\w-]+"),
            (("GET", "POST"), rf"{_API}/metrics/[\w-]+"),
            (("DELETE",), rf"{_API}/logged-models/[\w-]+(?:/tags/[\w.-]+)?"),
            (("DELETE",), rf"{_ARTIFACTS}/artifacts/[^/].*"),
            (("GET",), r"/(?:get-artifact|model-versions/get-artifact)?"),
            (("GET",), r"/static-files/[\w./-]+"),
            (("GET",), r"/ajax-api/[23]\.0/mlflow/(?:users/current|ui-telemetry|server-info)"),
        )
    ),
)
# The pages of MLflow ask in GraphQL too; MLflow holds each object of an answer against the person's permissions.
_OF_A_BROWSER: Final = ((("POST",), re.compile(r"/graphql")),)
_MODEL: Final = re.compile(rf"{_API}/logged-models/([\w-]+)(?:/.*)?")
_ARTIFACT: Final = re.compile(rf"{_ARTIFACTS}/(?:artifacts|mpu/\w+)(?:/(.*))?")


def authorize() -> Authorization | Response:
    """Who asks, or the answer in place of MLflow's own; called several times for one request."""
    if (known := g.get("mltf_authorization")) is None:
        known = g.mltf_authorization = _authorize()
    found: Authorization | Response = known
    return found


def _authorize() -> Authorization | Response:
    if "Authorization" not in request.headers:
        return _of_a_browser()
    kind, _, token = request.headers["Authorization"].partition(" ")
    claims = mlflow_tokens.claims(token.strip(), _KINDS) if kind.lower() == "bearer" else None
    if claims is None:
        return _answer(401, "UNAUTHENTICATED", "a token of the gateway is needed")
    name, of_a_job = str(claims["sub"]), claims["kind"] == "job"
    if not _is_listed(_OF_A_JOB if of_a_job else _OF_A_PERSON):
        return _answer(403, "PERMISSION_DENIED", "this route is not open")
    _know(name)
    if of_a_job:
        if not _is_in_scope(str(claims.get("experiment", ""))):
            return _answer(403, "PERMISSION_DENIED", "a job reaches the experiment of its own run only")
        if (unchanged := _own_status(str(claims.get("run", "")))) is not None:
            return unchanged
    return Authorization("bearer", {"username": name}, token)


def _of_a_browser() -> Authorization | Response:
    """Who looks at the pages of MLflow, or the next step of the way through the gateway's sign-in."""
    if (step := mlflow_browser.next_step()) is not None:
        return step
    name = mlflow_browser.person()
    if name is None:
        return _answer(401, "UNAUTHENTICATED", "a token of the gateway is needed")
    if not mlflow_browser.is_of_own_page():
        return _answer(403, "PERMISSION_DENIED", "a page of another site may not change anything")
    if not _is_listed((*_OF_A_PERSON, *_OF_A_BROWSER)):
        return _answer(403, "PERMISSION_DENIED", "this route is not open")
    _know(name)
    return Authorization("bearer", {"username": name})


def _is_listed(routes: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...]) -> bool:
    path = request.path
    if ".." in path or "//" in path or "%" in path or "\\" in path:
        return False
    method = "GET" if request.method == "HEAD" else request.method
    return any(method in methods and pattern.fullmatch(path) for methods, pattern in routes)


def _know(name: str) -> None:
    """Make the user at the first sight; nobody knows the password."""
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth import store

    if store.has_user(name):
        return
    try:
        store.create_user(name, secrets.token_urlsafe(32))
    except MlflowException:
        # another request made it between the two calls
        if not store.has_user(name):
            raise


def _is_in_scope(experiment: str) -> bool:
    """Whether all that the request names lies in the experiment, and it names something."""
    from mlflow.exceptions import MlflowException
    from mlflow.server.handlers import _get_tracking_store

    named: list[str] = []
    artifact, model = _ARTIFACT.fullmatch(request.path), _MODEL.fullmatch(request.path)
    if artifact is not None:
        place = artifact[1] or request.args.get("path", "")
        return bool(experiment) and ".." not in place and place.split("/", 1)[0] == experiment
    content = _content()
    if content is None:
        return False
    store = _get_tracking_store()
    try:
        for key, value in content:
            if key in ("experimentid", "experimentids"):
                named.append(value)
            elif key in ("runid", "runids", "runuuid", "sourcerunid"):
                named.append(str(_run(value).experiment_id))
            elif key in ("modelid", "modelids"):
                named.append(str(store.get_logged_model(value).experiment_id))
        if model is not None and model[1] != "search":
            named.append(str(store.get_logged_model(model[1]).experiment_id))
    except MlflowException:
        return False
    return bool(named) and set(named) == {experiment}


def _content() -> list[tuple[str, str]] | None:
    """All values of the request by their names, in one spelling; MLflow takes `runId` for `run_id`."""
    found = [(_plain(key), value) for key, value in request.args.items(multi=True)]
    if (request.content_length or 0) > _LARGEST_BODY:
        return None
    if request.get_data(cache=True):
        body = request.get_json(force=True, silent=True)
        if not isinstance(body, dict):
            return None
        found += _flat(body)
    return found


def _flat(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _flat(one, _plain(str(name)))
    elif isinstance(value, list):
        for one in value:
            yield from _flat(one, key)
    elif value not in (None, ""):
        yield key, str(value)


def _plain(name: str) -> str:
    return name.replace("_", "").replace("[]", "").lower()


def _own_status(run_id: str) -> Response | None:
    """The unchanged run, when a job wants to change its own: the gateway alone ends it."""
    if not re.fullmatch(rf"{_API}/runs/update", request.path):
        return None
    ids = {value for key, value in _content() or [] if key in ("runid", "runuuid")}
    if run_id not in ids:
        return None
    from mlflow.protos.service_pb2 import UpdateRun
    from mlflow.utils.proto_json_utils import message_to_json

    answer = UpdateRun.Response(run_info=_run(run_id).to_proto())
    return Response(message_to_json(answer), mimetype="application/json")


def _run(run_id: str) -> Any:  # noqa: ANN401 - of mlflow
    """What MLflow knows of a run; MlflowException when there is none."""
    from mlflow.server.handlers import _get_tracking_store

    store: Any = _get_tracking_store()
    return store.get_run(run_id).info


def _answer(status: int, code: str, message: str) -> Response:
    content = json.dumps({"error_code": code, "message": message})
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return Response(content, status, headers, mimetype="application/json")
