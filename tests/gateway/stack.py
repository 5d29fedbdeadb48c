"""All of a gateway on this machine: provider, MLflow server, API, worker, and a lab cluster."""

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from bhive_mltf.files import atomic
from bhive_mltf.gateway.dev.tracking_server import TrackingServer
from tests.gateway import configuration, needs
from tests.gateway.people import approve
from tests.helpers.ports import free_port
from tests.helpers.waiting import ends, wait_for

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "mlproject"
OVER = ("failed", "cancelled", "refused", "succeeded")
# it prints a line, and eight more once it may
HELD = """
import os, time
print("line 0", flush=True)
while not os.path.exists("go"):
    time.sleep(0.1)
for number in range(1, 9):
    print("line", number, flush=True)
"""


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
        "--no-build-isolation",
        "--target",
        str(folder / "site"),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder / "site"


def finished(process, code=0, seconds=120):
    """What a process prints until it ends, with this code; one that does not end in time is killed."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    assert process.returncode == code, f"{process.args}: {process.returncode}\n{out}\n{err}"
    return out, err


class Stack:
    """The processes, each with its log in the folder."""

    def __init__(self, folder, lab=None, profile=None, **settings):
        self.folder, self.lab = folder, lab
        self.processes = {}
        # of MLflow: what it tracks, and its users
        self.stores = {"tracking": f"sqlite:///{folder}/mlflow.db", "users": f"sqlite:///{folder}/users.db"}
        self.ports = {name: free_port() for name in ("provider", "mlflow", "api")}
        self.url = f"http://127.0.0.1:{self.ports['api']}"
        self.tracking = f"http://127.0.0.1:{self.ports['mlflow']}"
        self.issuer = f"http://127.0.0.1:{self.ports['provider']}"
        facility = folder / "facility.yml"
        if lab is not None:
            facility.write_text(
                "cluster: lab\npartition: main\nmemory_per_cpu_gb: 0.5\nhours: 0.5\n"
                "signal_seconds: 40\npoll_seconds: 0.5\n"
            )
        # of environments that jobs ask for
        self.wheels = folder / "wheels"
        common = {
            "facility": str(facility),
            "environment": sys.prefix,
            "max_hours": 0.5,
            "launcher_variables": {"PYTHONPATH": str(REPOSITORY)},
        }
        profiles = {
            "lab": {**common, "builds": True, "read_only": [sys.base_prefix], **(profile or {})},
            "two-nodes": {
                **common,
                "read_only": [sys.base_prefix, str(REPOSITORY)],
                "network": "shared",
                "max_nodes": 2,
                "max_attempts": 5,
                "variables": {
                    "PYTHONPATH": str(REPOSITORY),
                    "OMP_NUM_THREADS": "1",
                    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",
                },
            },
        }
        clients = {"cli_client": "mltf-cli", "web_client": "mltf-web", "clients": ["robot"]}
        content = configuration.content(
            folder,
            profiles,
            {"issuer": self.issuer, "allow_http": True, **clients},
            public_url=self.url,
            tracking_url=self.tracking,
            roles={
                "user": {"profiles": ["lab", "two-nodes"], "jobs": 50},
                "admin": {"profiles": ["lab"], "admin": True},
            },
            builds=configuration.builds(self.wheels),
            **{"tick_s": 0.5, "submit_timeout_s": 4, **settings},
        )
        self.config = configuration.write(folder, content)

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
        # other test processes start the same
        atomic.write_text(modules / "provider.mjs", (needs.PROVIDER / "provider.mjs").read_text(encoding="utf-8"))
        command = [needs.program("node", "apt-get install nodejs"), str(modules / "provider.mjs")]
        self.start("provider", [*command, str(self.ports["provider"]), "mltf", f"{self.url}/auth/callback"])
        wait_for_url(f"{self.issuer}/.well-known/openid-configuration")

    def start_mlflow(self):
        server = TrackingServer(
            self.folder,
            self.ports["mlflow"],
            runs=self.stores["tracking"],
            users=self.stores["users"],
            issuer=self.url,
            jwks=self.folder / "keys" / "jwks.json",
        )
        server.write()
        return self.start("mlflow", server.command, **server.variables("only of this test"))

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
        self._tracking_until = 0.0

    @property
    def environment(self):
        return {**_environment(), "HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / ".config")}

    def start(self, *arguments, **options):
        command = [sys.executable, "-m", "bhive_mltf_client.main", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=self.environment, cwd=self.home, **pipes, **options)

    def run(self, *arguments, code=0, timeout=120):
        return finished(self.start(*arguments), code, timeout)

    def login(self):
        process = self.start("login", self.stack.url)
        try:
            approve(process.stdout.readline().split()[1], self.name)
        except BaseException as error:
            process.kill()
            error.add_note("".join(process.communicate()))
            raise
        out, _ = finished(process)
        assert "signed in" in out
        return self

    def submit(self, folder=EXAMPLE, *options, profile="lab"):
        out, _ = self.run("submit", folder, "--profile", profile, *options)
        return out.split()[1].rstrip(",")

    def show(self, job):
        """All about a job, as the command `show` prints it, without the time that a command takes to start."""
        answer = self.ask("GET", f"/v1/submissions/{job}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def folder_of(self, job):
        return self.stack.folder / "spool" / "jobs" / job

    def let_go(self, job):
        """Let a project go on that waits for a file `go`."""
        (self.folder_of(job) / "work" / "go").touch()

    def wait(self, job, *states, seconds=120):
        """What the job is like once it is in one of the states; a job that is over is not waited for."""

        def reached(found):
            assert found["state"] in states or found["state"] not in OVER, f"{found['state']}: {found['reason']}"
            return found["state"] in states and found

        return self.wait_for(job, reached, seconds, " or ".join(states))

    def wait_for(self, job, condition, seconds=90.0, what="it"):
        """The first true value of `condition` of what `show` says; without one, or an error, all about the job."""
        try:
            return wait_for(lambda: condition(self.show(job)), seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.account_of(job)}") from None

    def account_of(self, job):
        """The job with its events, the ends of its logs, and the ends of the logs of worker and API."""
        folder = self.folder_of(job)
        paths = [*sorted(folder.glob("logs/*")), *sorted(folder.glob("slurm/**/*.json"))]
        paths += [self.stack.folder / f"{name}.log" for name in ("worker", "api")]
        return "\n".join([self.ask("GET", f"/v1/submissions/{job}").text, *ends(paths)])

    def token(self):
        """The access token of the sign-in, renewed by the command where it would be over soon."""
        path = self.home / ".config" / "bhive-mltf" / "tokens.json"
        if json.loads(path.read_text())["expires_at"] < time.time() + 90:
            self.run("whoami")
        return json.loads(path.read_text())["access_token"]

    def ask(self, method, path, **given):
        """A request to the gateway as this person."""
        headers = {"Authorization": f"Bearer {self.token()}", **given.pop("headers", {})}
        return httpx.request(method, f"{self.stack.url}{path}", headers=headers, timeout=60, **given)

    def mlflow(self, method, path, **given):
        """A request to the tracking server as this person."""
        # each is a start of the command
        if self._tracking_until < time.monotonic():
            self._tracking_token = self.run("token")[0].strip()
            self._tracking_until = time.monotonic() + 60
        headers = {"Authorization": f"Bearer {self._tracking_token}"}
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
