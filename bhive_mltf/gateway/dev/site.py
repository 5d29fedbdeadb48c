"""`serve --dev`: provider, MLflow, API, worker and lab cluster as processes of this user, until one is told to stop."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

import bhive_mltf
from bhive_mltf.errors import ConfigError
from bhive_mltf.files import atomic
from bhive_mltf.gateway.dev import provider
from bhive_mltf.gateway.dev.tracking_server import TrackingServer
from bhive_mltf.gateway.identity import mint

_START_S: Final = 180.0
_STOP_S: Final = 20.0
_FACILITY: Final = """cluster: lab
partition: main
memory_per_cpu_gb: 0.5
hours: 0.5
signal_seconds: 40
poll_seconds: 1
"""
_SAY: Final = """
The gateway is at {url}, MLflow at {tracking}. Sign in with any name; there is no password.

    bhive-mltf-client login {url}
    bhive-mltf-client submit examples/mlproject --profile lab -P epochs=3 --follow

All files are in {folder}, logs in {folder}/logs. Ctrl-C stops everything; the next start goes on with the same jobs.
"""


class Site:
    """All processes of one gateway.

    Parameters
    ----------
    folder : of all its files; one that exists is used again.
    port : of the gateway; MLflow and the provider have the two that follow.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder.absolute()
        places = [f"http://127.0.0.1:{one}" for one in (port, port + 1, port + 2)]
        self.url, self.tracking, self.issuer = places
        self.port = port
        self.config = self.folder / "gateway.yml"
        self._mlflow = TrackingServer(
            self.folder,
            port + 1,
            runs=f"sqlite:///{self.folder}/mlflow.db",
            users=f"sqlite:///{self.folder}/users.db",
            issuer=self.url,
            jwks=self.folder / "keys" / mint.JWKS_NAME,
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._own_lab = False

    def run(self, stop: threading.Event) -> None:
        """Start all, and wait until told to stop.

        Raises
        ------
        ConfigError : something is not installed, a port is in use, or a process ends by itself.
        """
        self._check()
        self._write()
        try:
            self._start(stop)
            sys.stdout.write(_SAY.format(url=self.url, tracking=self.tracking, folder=self.folder))
            sys.stdout.flush()
            while not stop.wait(1.0):
                self._check_processes()
        finally:
            self._stop()

    def _check(self) -> None:
        if find_spec("mlflow.server") is None or find_spec("flask_wtf") is None:
            raise ConfigError("the MLflow server is not installed: pip install 'bhive_mltf[gateway]'")
        if shutil.which("bwrap") is None:
            raise ConfigError("jobs need the sandbox bwrap, which is not installed: apt-get install bubblewrap")
        for port in range(self.port, self.port + 3):
            with socket.socket() as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    one.bind(("127.0.0.1", port))
                except OSError as error:
                    raise ConfigError(f"port {port} cannot be used ({error.strerror}): give another --port") from None

    def _write(self) -> None:
        (self.folder / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic.write_text(self.folder / "facility.yml", _FACILITY)
        self._mlflow.write()
        atomic.write_text(self.config, yaml.safe_dump(self._settings(), sort_keys=False))
        if not list((self.folder / "keys").glob("*.pem")):
            mint.rotate(self.folder / "keys")
        word = self.folder / "keys" / "flask_key"
        if not word.is_file():
            with os.fdopen(os.open(word, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))

    def _settings(self) -> dict[str, Any]:
        # the nodes import the same program, also from a checkout
        program = str(Path(bhive_mltf.__file__).parents[1])
        profile = {
            "description": "the cluster of two nodes on this machine",
            "facility": str(self.folder / "facility.yml"),
            "environment": sys.prefix,
            "read_only": [sys.base_prefix],
            "builds": True,
            "max_hours": 0.5,
            "launcher_variables": {"PYTHONPATH": program},
        }
        sign_on = {"issuer": self.issuer, "audiences": [provider.AUDIENCE], "cli_client": provider.CLI}
        return {
            "public_url": self.url,
            "tracking_url": self.tracking,
            "spool": str(self.folder / "spool"),
            "database_url": f"sqlite:///{self.folder}/gateway.db",
            "keys": str(self.folder / "keys"),
            "provider": {**sign_on, "web_client": provider.WEB, "allow_http": True},
            "roles": {"user": {"profiles": ["lab"]}, "admin": {"profiles": ["lab"], "admin": True}},
            "builds": {
                "index_url": "https://pypi.org/simple",
                "index_hosts": ["files.pythonhosted.org"],
                "pythons": {f"3.{sys.version_info.minor}": sys.executable},
            },
            "profiles": {"lab": profile},
            "tick_s": 1.0,
        }

    def _start(self, stop: threading.Event) -> None:
        python = sys.executable
        self._start_lab()
        self._begin("provider", [python, "-m", "bhive_mltf.gateway.dev.provider", str(self.port + 2), self.url])
        flask_key = (self.folder / "keys" / "flask_key").read_text()
        self._begin("mlflow", self._mlflow.command, self._mlflow.variables(flask_key))
        gateway = [python, "-m", "bhive_mltf.gateway", "--config", str(self.config)]
        self._begin("api", [*gateway, "serve", "--port", str(self.port)])
        for place in (f"{self.issuer}/jwks", f"{self.url}/healthz", f"{self.tracking}/health"):
            self._wait(place, stop)
        self._begin("worker", [*gateway, "worker"])

    def _start_lab(self) -> None:
        self._own_lab = self._slurm("env").returncode != 0
        done = self._slurm("lab", "up")
        if done.returncode:
            raise ConfigError(done.stderr.strip().removeprefix("error: ") or "the lab cluster does not start")

    def _slurm(self, *words: str) -> subprocess.CompletedProcess[str]:
        program = "import sys; from bhive_mltf.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "slurm", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)

    def _begin(self, name: str, command: list[str], variables: Mapping[str, str] | None = None) -> None:
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process alone, which stops them in order
                start_new_session=True,
            )

    def _wait(self, place: str, stop: threading.Event) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if stop.is_set():
                return
            self._check_processes()
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(place, timeout=5).status_code == 200:
                    return
            time.sleep(0.2)
        raise ConfigError(f"{place} gave no answer for {_START_S:g} s: look into {self.folder}/logs")

    def _check_processes(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = self.folder / "logs" / f"{name}.log"
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise ConfigError(f"the process {name} has ended ({''.join(last)[:300]}): look into {log}")

    def _stop(self) -> None:
        for process in reversed(self._processes.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if self._own_lab:
            self._slurm("lab", "down")
