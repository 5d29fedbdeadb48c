"""Questions to the gateway, each with a token that is still good."""

from __future__ import annotations

import gzip
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from bhive_mltf_client import packing, sign_in
from bhive_mltf_client.errors import ClientError, GatewayAnswerError, NotSignedInError

TIMEOUT_S = 60.0
FINAL = frozenset({"succeeded", "failed", "cancelled", "refused"})
# How long questions that change nothing, or may be repeated, are asked again while the gateway is away.
AWAY_S = 120.0
_CHUNK = 2**20
_WAIT_S = 20


class Gateway:
    """The gateway of the present sign-in."""

    def __init__(self) -> None:
        self.url = sign_in.fresh().gateway
        self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def submit(self, folder: Path, request: dict[str, Any], allowed: tuple[str, ...] = ()) -> dict[str, Any]:
        """Pack a folder, upload it unless it is there, and hand it in; the job.

        Raises
        ------
        ClientError : the folder cannot be packed, or the gateway refuses it.
        """
        key = str(uuid.uuid4())
        with tempfile.TemporaryDirectory() as place:
            archive = Path(place, "project.tar")
            digest = packing.pack(folder, archive, allowed)
            if not self._has(digest):
                self._upload(digest, archive)
        # the same key at each try: a lost answer never makes a second job
        content = {**request, "project": digest}
        return self._json("POST", "/v1/submissions", json=content, headers={"Idempotency-Key": key})

    def me(self) -> dict[str, Any]:
        """Who the token speaks for."""
        return self._json("GET", "/v1/me")

    def profiles(self) -> list[dict[str, Any]]:
        """The kinds of jobs there are."""
        found: list[dict[str, Any]] = self._ask("GET", "/v1/profiles").json()
        return found

    def jobs(self, state: str = "", label: str = "", limit: int = 50) -> list[dict[str, Any]]:
        """The newest jobs."""
        asked = {"state": state, "label": label, "limit": limit}
        found: list[dict[str, Any]] = self._json("GET", "/v1/submissions", params=asked)["submissions"]
        return found

    def show(self, job: str) -> dict[str, Any]:
        """A job, with what happened to it."""
        return self._json("GET", f"/v1/submissions/{job}")

    def cancel(self, job: str) -> dict[str, Any]:
        """Ask for the end of a job."""
        return self._json("POST", f"/v1/submissions/{job}/cancel")

    def wait(self, job: str, within_s: float | None = None, every_s: float = 2.0) -> dict[str, Any]:
        """The job once it is over, or as it is after so many seconds."""
        deadline = None if within_s is None else time.monotonic() + within_s
        while True:
            found = self.show(job)
            if found["state"] in FINAL or (deadline is not None and time.monotonic() > deadline):
                return found
            time.sleep(every_s)

    def log(self, job: str, rank: int = 0, *, follow: bool = False) -> Iterator[bytes]:
        """The log so far, and while it is followed all that comes until the job is over."""
        offset = 0
        while True:
            asked = {"rank": rank, "offset": offset, "wait": _WAIT_S if follow else 0}
            answer = self._ask("GET", f"/v1/submissions/{job}/log", params=asked)
            if answer.content:
                yield answer.content
            offset = int(answer.headers["X-Log-Next"])
            if answer.headers["X-Log-Complete"] == "true" or (not follow and not answer.content):
                return

    def tracking_token(self) -> tuple[str, float]:
        """A token for the tracking server, and for how many seconds it is good."""
        found = self._json("POST", "/v1/tokens/tracking")
        return str(found["token"]), float(found["expires_in"])

    def _has(self, digest: str) -> bool:
        try:
            self._ask("HEAD", f"/v1/projects/{digest}")
        except GatewayAnswerError as error:
            if error.status == 404:
                return False
            raise
        return True

    def _upload(self, digest: str, archive: Path) -> None:
        packed = archive.with_suffix(".tar.gz")
        with archive.open("rb") as source, gzip.open(packed, "wb", compresslevel=5) as target:
            shutil.copyfileobj(source, target, _CHUNK)
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/x-tar"}
        self._ask("PUT", f"/v1/projects/{digest}", headers=headers, body=lambda: _chunks(packed))

    def _json(self, method: str, path: str, **given: Any) -> dict[str, Any]:  # noqa: ANN401 - of httpx
        found: dict[str, Any] = self._ask(method, path, **given).json()
        return found

    def _ask(
        self,
        method: str,
        path: str,
        body: Callable[[], Iterator[bytes]] | None = None,
        **given: Any,  # noqa: ANN401 - of httpx
    ) -> httpx.Response:
        """An answer that is a success; a gateway that is away or busy is asked again for a while."""
        deadline = time.monotonic() + AWAY_S
        pause = 1.0
        headers = given.pop("headers", {})
        while True:
            token = {"Authorization": f"Bearer {sign_in.fresh().access_token}"}
            content = {"content": body()} if body is not None else {}
            try:
                answer = self._client.request(method, path, headers={**headers, **token}, **content, **given)
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise ClientError(f"{self.url} gives no answer ({type(error).__name__}): try again later") from None
                wait = pause
            else:
                if answer.status_code not in (502, 503, 504) or time.monotonic() > deadline:
                    return _checked(answer)
                wait = _seconds(answer.headers.get("Retry-After"), pause)
            time.sleep(wait * random.uniform(0.8, 1.2))
            pause = min(pause * 2, 15.0)


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        problem = answer.json()
        detail, kind = str(problem["detail"]), str(problem["type"]).rpartition(":")[2]
    except (ValueError, KeyError, TypeError):
        detail, kind = f"the gateway answers {answer.status_code}", ""
    if answer.status_code == 401:
        raise NotSignedInError(detail)
    raise GatewayAnswerError(answer.status_code, kind, detail)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _seconds(text: str | None, otherwise: float) -> float:
    try:
        return min(float(text), 60.0) if text is not None else otherwise
    except ValueError:
        return otherwise
