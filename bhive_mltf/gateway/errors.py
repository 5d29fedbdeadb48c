"""Errors of the gateway.

GatewayError
├── TokenError        a token that is not accepted
├── ArchiveError      an archive that is not a project
├── ProjectError      a project or its parameters that cannot be run
├── EnvironmentBuildError  an environment that cannot be built
└── UpstreamError     the sign-on provider or the tracking server does not answer as it should
"""

from __future__ import annotations

from bhive_mltf.errors import BhiveError


class GatewayError(BhiveError):
    """Base of the gateway's errors."""


class TokenError(GatewayError):
    """A token that is not accepted; the message never holds the token."""


class ArchiveError(GatewayError, ValueError):
    """An archive that is not a project."""


class ProjectError(GatewayError, ValueError):
    """A project, or parameters given to it, that cannot be run."""


class EnvironmentBuildError(GatewayError, RuntimeError):
    """An environment that cannot be built; the message is for its owner."""


class UpstreamError(GatewayError, RuntimeError):
    """The sign-on provider or the tracking server does not answer, or not as it should."""
