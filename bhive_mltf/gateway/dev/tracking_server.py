"""MLflow's server behind a gateway on one machine: with the gateway's authorization, on loopback only."""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bhive_mltf.files import atomic

_INI: Final = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = {users}
admin_username = admin
authorization_function = bhive_mltf.gateway.mlflow_auth:authorize
grant_default_workspace_access = false
"""


@dataclass(frozen=True)
class TrackingServer:
    """An MLflow server.

    Parameters
    ----------
    folder : of its artifacts and of its configuration, `mlflow.ini`.
    port : on the loopback interface.
    runs, users : addresses of its databases.
    issuer : of the tokens that it takes, which is the gateway's `public_url`.
    jwks : file with the gateway's public keys.
    """

    folder: Path
    port: int
    runs: str
    users: str
    issuer: str
    jwks: Path

    def write(self) -> None:
        """Write its configuration."""
        atomic.write_text(self._ini, _INI.format(users=self.users))

    @property
    def command(self) -> list[str]:
        """What starts it."""
        return [
            *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
            *("--backend-store-uri", self.runs),
            *("--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")),
        ]

    def variables(self, flask_key: str) -> dict[str, str]:
        """Its environment, on top of that of the process that starts it.

        flask_key : secret of the cookies of its pages; another one signs all people out.
        """
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(self._ini),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": flask_key,
            # nobody signs in with it
            "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_urlsafe(32),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLTF_ISSUER": self.issuer,
            "MLTF_JWKS_FILE": str(self.jwks),
        }

    @property
    def _ini(self) -> Path:
        return self.folder / "mlflow.ini"
