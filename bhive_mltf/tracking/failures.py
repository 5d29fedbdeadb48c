"""What an error of MLflow means for the point or file that was being sent."""

from __future__ import annotations

import re
from enum import Enum

# a token may be renewed, a rate limit ends, a conflict is resolved
_PASSING = frozenset({401, 403, 408, 409, 429})
_CREDENTIALS = re.compile(r"//[^/\s]*@")
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, TypeError, ValueError)


class Failure(Enum):
    """DOWN: nobody answers; keep all and try later. REJECTED: will never be taken. UNCLEAR: worth some more tries."""

    DOWN = "down"
    REJECTED = "rejected"
    UNCLEAR = "unclear"


def classify(error: Exception) -> Failure:
    """The meaning of an error raised by a call of the MLflow client."""
    from mlflow.exceptions import MlflowException, RestException
    from requests import ConnectionError as NoConnection
    from requests import Timeout

    if isinstance(error, NoConnection | Timeout):
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
