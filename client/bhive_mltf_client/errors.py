"""What goes wrong in the client, each as one sentence."""

from __future__ import annotations


class ClientError(Exception):
    """Something that the user can mend; the message says how."""


class NotSignedInError(ClientError):
    """There are no tokens, or they are not accepted any more."""


class GatewayAnswerError(ClientError):
    """The gateway refuses a request.

    status : of HTTP.
    kind : the last part of the problem's type, such as `quota-jobs`.
    """

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.kind = status, kind
