"""Tokens for mlflow's own calls: `MLFLOW_TRACKING_AUTH=mltf`. They go to the gateway's tracking server only."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import requests
from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider
from requests.auth import AuthBase

from bhive_mltf_client import credentials
from bhive_mltf_client.gateway import Gateway

NAME = "mltf"
# A token is taken anew when this part of its life is over.
_RENEW_AFTER = 0.8


class _TrackingToken(AuthBase):
    """Adds a token that is still good; asks the gateway for one when it is not."""

    def __init__(self) -> None:
        self._token, self._good_until = "", 0.0

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if _origin(request.url or "") == _origin(credentials.read().tracking_url):
            request.headers["Authorization"] = f"Bearer {self._fresh()}"
        return request

    def _fresh(self) -> str:
        if time.monotonic() > self._good_until:
            with Gateway() as gateway:
                self._token, life = gateway.tracking_token()
            self._good_until = time.monotonic() + life * _RENEW_AFTER
        return self._token


_of_this_process = _TrackingToken()


class AuthProvider(RequestAuthProvider):
    """What mlflow asks for each request."""

    def get_name(self) -> str:
        """The value of `MLFLOW_TRACKING_AUTH`."""
        return NAME

    def get_auth(self) -> AuthBase:
        """What signs the requests of this process."""
        return _of_this_process


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
