"""All of a gateway on this machine: provider, MLflow server, API, worker, and a lab cluster."""

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import yaml

from bhive_mltf.gateway.identity import mint
from tests.gateway import needs
from tests.gateway.people import approve

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "mlproject"
MLFLOW_INI = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = {store}
admin_username = admin
authorization_function = bhive_mltf.gateway.mlflow_auth:authorize
grant_default_workspace_access = false
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for_url(url, seconds=90):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if httpx.get(url, timeout=2).status_code < 500:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"{url} gave no answer"
        time.sleep(0.2)


@functools.cache
def installed_client():
    """A folder with the client as its wheel installs it, entry points included."""
    folder = Path(tempfile.mkdtemp(prefix="mltf-client-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # a copy: a build leaves folders behind
    source = shutil.copytree(
        REPOSITORY / "client", folder / "source", ignore=shutil.ignore_patterns("*.egg-info", "build")
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder / "site"),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder / "site"


class Stack:
    """The processes, each with its log in the folder."""

    def __init__(self, folder, lab=None, profile=None, **settings):
        self.folder, self.lab = folder, lab
        self.processes = {}
        # of MLflow: what it tracks, and its users
        self.stores = {"tracking": f"sqlite:///{folder}/mlflow.db", "users": f"sqlite:///{folder}/auth.db"}
        self.ports = {name: free_port() for name in ("provider", "mlflow", "api")}
        self.url = f"http://127.0.0.1:{self.ports['api']}"
        self.tracking = f"http://127.0.0.1:{self.ports['mlflow']}"
        self.issuer = f"http://127.0.0.1:{self.ports['provider']}"
        self.config = folder / "gateway.yml"
        facility = folder / "facility.yml"
        if lab is not None:
            facility.write_text(
                "cluster: lab\npartition: main\nmemory_per_cpu_gb: 0.5\nhours: 0.5\n"
                "signal_seconds: 40\npoll_seconds: 1\n"
            )
        # of environments that jobs ask for
        self.wheels = folder / "wheels"
        self.wheels.mkdir(exist_ok=True)
        content = {
            "public_url": self.url,
            "tracking_url": self.tracking,
            "spool": str(folder / "spool"),
            "database_url": f"sqlite:///{folder}/gateway.db",
            "keys": str(folder / "keys"),
            "provider": {
                "issuer": self.issuer,
                "audiences": ["mltf"],
                "cli_client": "mltf-cli",
                "web_client": "mltf-web",
                "clients": ["robot"],
                "allow_http": True,
            },
            "roles": {
                "user": {"profiles": ["lab", "two-nodes"], "jobs": 50},
                "admin": {"profiles": ["lab"], "admin": True},
            },
            "builds": {"index_url": f"file://{self.wheels}", "pythons": {"3.11": sys.executable}},
            "profiles": {
                "lab": {
                    "facility": str(facility),
                    "builds": True,
                    "environment": sys.prefix,
                    "read_only": [sys.base_prefix],
                    "max_hours": 0.5,
                    "launcher_variables": {"PYTHONPATH": str(REPOSITORY)},
                    **(profile or {}),
                },
                "two-nodes": {
                    "facility": str(facility),
                    "environment": sys.prefix,
                    "read_only": [sys.base_prefix, str(REPOSITORY)],
                    "network": "shared",
                    "max_hours": 0.5,
                    "max_nodes": 2,
                    "max_attempts": 5,
                    "variables": {
                        "PYTHONPATH": str(REPOSITORY),
                        "OMP_NUM_THREADS": "1",
                        "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",
                    },
                    "launcher_variables": {"PYTHONPATH": str(REPOSITORY)},
                },
            },
            "tick_s": 0.5,
            "submit_timeout_s": 4,
            **settings,
        }
        self.config.write_text(yaml.safe_dump(content))
        mint.rotate(folder / "keys")

    def start(self, name, command, **variables):
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**_environment(), **variables},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self.processes[name]

    def start_provider(self):
        modules = needs.node_modules()
        (modules / "provider.mjs").write_bytes((needs.PROVIDER / "provider.mjs").read_bytes())
        command = [needs.program("node", "apt-get install nodejs"), str(modules / "provider.mjs")]
        self.start("provider", [*command, str(self.ports["provider"]), "mltf", f"{self.url}/auth/callback"])
        wait_for_url(f"{self.issuer}/.well-known/openid-configuration")

    def start_mlflow(self):
        ini = self.folder / "auth.ini"
        ini.write_text(MLFLOW_INI.format(store=self.stores["users"]))
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"]
        command += ["--port", str(self.ports["mlflow"]), "--workers", "1", "--serve-artifacts"]
        command += ["--backend-store-uri", self.stores["tracking"]]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        variables = {
            "MLFLOW_AUTH_CONFIG_PATH": str(ini),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "only of this test",
            "MLFLOW_AUTH_ADMIN_PASSWORD": "only-of-this-test",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLTF_ISSUER": self.url,
            "MLTF_JWKS_FILE": str(self.folder / "keys" / "jwks.json"),
        }
        return self.start("mlflow", command, **variables)

    def start_api(self):
        self.start("api", [*self._gateway(), "serve", "--port", str(self.ports["api"])])
        wait_for_url(f"{self.url}/healthz")

    def start_worker(self, **variables):
        return self.start("worker", [*self._gateway(), "worker"], BHIVE_SLURM_LAB=str(self.lab.directory), **variables)

    def start_all(self):
        self.start_mlflow()
        self.start_provider()
        self.start_api()
        self.start_worker()
        wait_for_url(f"{self.tracking}/health", 180)

    def stop(self, name, number=signal.SIGTERM):
        process = self.processes.pop(name, None)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)

    def stop_all(self):
        for name in list(self.processes):
            self.stop(name)

    def _gateway(self):
        return [sys.executable, "-m", "bhive_mltf.gateway", "--config", str(self.config)]

    def person(self, name):
        """A signed-in person with a home of their own."""
        return Person(self, name).login()


class Person:
    """The command `bhive-mltf-client` as one person has it."""

    def __init__(self, stack, name):
        self.stack, self.name = stack, name
        self.home = stack.folder / "homes" / name
        self.home.mkdir(parents=True, exist_ok=True)

    @property
    def environment(self):
        return {**_environment(), "HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / ".config")}

    def start(self, *arguments, **options):
        command = [sys.executable, "-m", "bhive_mltf_client.main", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=self.environment, cwd=self.home, **pipes, **options)

    def run(self, *arguments, code=0, timeout=120):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == code, f"{arguments}: {process.returncode}\n{out}\n{err}"
        return out, err

    def login(self):
        process = self.start("login", self.stack.url)
        address = process.stdout.readline().split()[1]
        approve(address, self.name)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "signed in" in out
        return self

    def submit(self, folder=EXAMPLE, *options, profile="lab"):
        out, _ = self.run("submit", folder, "--profile", profile, *options)
        return out.split()[1].rstrip(",")

    def show(self, job):
        return json.loads(self.run("show", job)[0])

    def wait(self, job, *states, seconds=120):
        deadline = time.monotonic() + seconds
        while (found := self.show(job))["state"] not in states:
            assert time.monotonic() < deadline, f"{found}\n{self.stack_logs()}"
            assert found["state"] not in ("failed", "cancelled", "refused", "succeeded"), found
            time.sleep(0.5)
        return found

    def stack_logs(self):
        return "\n".join((self.stack.folder / f"{n}.log").read_text()[-3000:] for n in ("worker", "api"))

    def token(self):
        content = json.loads((self.home / ".config" / "bhive-mltf" / "tokens.json").read_text())
        return content["access_token"]

    def ask(self, method, path, **given):
        """A request to the gateway as this person."""
        headers = {"Authorization": f"Bearer {self.token()}", **given.pop("headers", {})}
        return httpx.request(method, f"{self.stack.url}{path}", headers=headers, timeout=60, **given)

    def mlflow(self, method, path, **given):
        """A request to the tracking server as this person."""
        token = self.run("token")[0].strip()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.request(method, f"{self.stack.tracking}{path}", headers=headers, timeout=60, **given)

    def tracked(self, job):
        """The MLflow run of a job."""
        answer = self.mlflow("GET", "/api/2.0/mlflow/runs/get", params={"run_id": self.show(job)["run_id"]})
        assert answer.status_code == 200, answer.text
        return answer.json()["run"]


def _environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLTF_", "SLURM_"))}
    paths = [str(REPOSITORY), str(REPOSITORY / "client")]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
