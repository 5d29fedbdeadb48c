"""API and worker as processes, and behind them a database and a cluster, each of which a test kills at a point."""

import hashlib
import io
import json
import os
import signal
import sys
import tarfile
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import sqlalchemy

from bhive_mltf.gateway import settings
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.database import Database
from bhive_mltf.gateway.store.tables import Submission
from bhive_mltf.slurm.record import JobRecord
from tests.gateway import children, configuration
from tests.gateway.fake_mlflow import FakeMlflow
from tests.gateway.keys import FakeProvider
from tests.gateway.stack import REPOSITORY, wait_for_url
from tests.gateway.wheels import make_wheel
from tests.helpers.fake_scheduler import PROGRAMS, FakeScheduler
from tests.helpers.ports import free_port
from tests.helpers.waiting import ends, wait_for

RECOVERED_S = 60.0
LOG = {"succeeded": "begin\nend\n", "failed": "begin\nend\n", "cancelled": "begin\n"}
# the project: for a cluster that runs it
CODE = b"""import os, sys, time
print("begin", flush=True)
if sys.argv[1] == "cancelled":
    time.sleep(600)
while not os.path.exists("go"):
    time.sleep(0.1)
print("end", flush=True)
sys.exit(sys.argv[1] == "failed")
"""
MLPROJECT = b"entry_points: {main: {parameters: {end: string}, command: 'python a.py {end}'}}"


class ServedProvider(FakeProvider):
    """The sign-on provider of one key, for processes that ask over HTTP."""

    def __init__(self):
        super().__init__()
        provider = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self):
                content = json.dumps(provider.document(self.path)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def document(self, path):
        if path.endswith("openid-configuration"):
            return {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/jwks", "token_endpoint": f"{self.issuer}/t"}
        return {"keys": [self.public(name) for name in self.keys]}

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class ScriptedCluster:
    """A scheduler of scripts; `kill` makes its programs fail as they do without a controller."""

    tick_s, logs = 0.1, ()

    def __init__(self, folder):
        self.scheduler = FakeScheduler(folder / "bin").install()
        self.profile = configuration.scripted(folder, poll_s=0.1)
        self.variables = {"PATH": f"{self.scheduler.folder}{os.pathsep}{os.environ['PATH']}"}

    def before(self):
        pass

    def before_kill(self, visit):
        pass

    def kill(self):
        for name in PROGRAMS:
            self.scheduler.fail(name, "Unable to contact slurm controller (connect failure)")

    def start(self):
        # long enough for the worker to ask in vain
        time.sleep(4 * self.tick_s)
        for name in PROGRAMS:
            self.scheduler.fail(name, "")

    def go_on(self, rig, job, end):
        """Let the job begin, and end once the gateway has seen that it runs."""
        for job_id, one in self.of(rig.folder_of(job)).items():
            log = rig.folder_of(job) / "logs" / "rank_0.log"
            if one["state"] == "PENDING":
                log.parent.mkdir(exist_ok=True)
                with log.open("a") as file:
                    file.write("begin\n")
                self.scheduler.change(job_id, state="RUNNING")
            elif one["state"] == "RUNNING" and end != "cancelled" and job.state == "running":
                with log.open("a") as file:
                    file.write(LOG[end].removeprefix("begin\n"))
                is_good = end == "succeeded"
                self.scheduler.change(job_id, state="COMPLETED" if is_good else "FAILED", status=0 if is_good else 256)

    def of(self, folder):
        """The jobs that were handed in from the folder of a submission."""
        return {number: one for number, one in self.scheduler.jobs.items() if Path(one["folder"]).parent == folder}


class RealCluster:
    """A lab, whose controller is killed."""

    tick_s = 0.3

    def __init__(self, folder, lab):
        self.lab, self.is_fresh, self.has_job, self.may_end = lab, True, True, True
        (folder / "site.yml").write_text(
            "cluster: lab\npartition: main\nmemory_per_cpu_gb: 0.5\nhours: 0.5\nsignal_seconds: 40\npoll_seconds: 0.3\n"
        )
        self.profile = {
            "facility": str(folder / "site.yml"),
            "environment": sys.prefix,
            "read_only": [sys.base_prefix],
            "launcher_variables": {"PYTHONPATH": str(REPOSITORY)},
        }
        self.variables = {"BHIVE_SLURM_LAB": str(lab.directory)}
        self.logs = [lab.settings.folder("log") / f"{name}.log" for name in ("slurmctld", "slurmd.n1", "slurmd.n2")]

    def before(self):
        """Until it is started again, a controller that forgets a job does not let it begin, which would be its end."""
        if self.is_fresh:
            # nor does it forget the ends of earlier jobs, which would be in its queue for minutes
            self._wait_for_its_disk()
            done = self.lab.run("scontrol", "update", "partitionname=main", "state=down")
            assert done.returncode == 0, done.stderr

    def before_kill(self, visit):
        """A controller that is killed while srun makes a step is SLURM's own affair: srun asks again a minute later."""
        if self.has_job and not self.is_fresh:
            wait_for(lambda: visit.log, 60, "the project")

    def kill(self):
        """As a crash; unless `is_fresh`, what happened so far is on its disk, where it comes every five seconds."""
        if not self.is_fresh:
            self._wait_for_its_disk()
        self.lab.kill_controller()

    def _wait_for_its_disk(self):
        saved, now = self.lab.settings.folder("state") / "job_state", time.time()
        while time.time() < now + 6 and saved.exists() and saved.stat().st_mtime < now:
            time.sleep(0.1)

    def start(self):
        self.lab.start_controller()

    def go_on(self, rig, job, end):
        """The cluster does it; the project ends when it may."""
        if self.may_end and (rig.folder_of(job) / "work").is_dir():
            (rig.folder_of(job) / "work" / "go").touch()

    def of(self, folder):
        listed = self.lab.run("squeue", "--states=all", "--noheader", "--Format=JobID:20,Name:200").stdout
        record = JobRecord.read(folder)
        return {line.split()[0]: line for line in listed.splitlines() if line.split()[1] == record.job_name}


class Rig:
    """All of it; `postgres` None takes SQLite."""

    def __init__(self, folder, cluster, postgres=None):
        self.folder, self.cluster, self.postgres = folder, cluster, postgres
        self.mlflow, self.provider = FakeMlflow(), ServedProvider()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.wheels = folder / "wheels"
        content = configuration.content(
            folder,
            {"small": {**cluster.profile, "builds": True}},
            {"issuer": self.provider.issuer, "allow_http": True},
            public_url=self.url,
            tracking_url=self.mlflow.url,
            roles={"user": {"profiles": ["small"], "jobs": 100}},
            builds=configuration.builds(self.wheels),
            tick_s=cluster.tick_s,
            submit_timeout_s=2,
            **({"database_url": postgres.new()} if postgres else {}),
        )
        self.config = configuration.write(folder, content)
        self.settings = settings.load(self.config)
        self.database = Database(self.settings.database_url)
        self.database.create()
        self.processes, self.restarts = {}, 0
        self.person = httpx.Client(base_url=self.url, timeout=30)
        self.start("api")
        self.start("worker")

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.join(20)
        self.person.close()
        self.database.close()
        self.mlflow.close()
        self.provider.close()

    def start(self, victim):
        """Start what was killed; it is there again when this returns."""
        if victim == "database":
            self.postgres.start()
        elif victim == "scheduler":
            self.cluster.start()
        else:
            command = ["serve", "--port", str(self.port)] if victim == "api" else ["worker"]
            variables = {**self.cluster.variables, "MLTF_FAULTS": str(self.faults)}
            self.processes[victim] = children.start(command, self.config, self.folder / f"{victim}.log", variables)
            if victim == "api":
                wait_for_url(f"{self.url}/healthz")

    def kill(self, victim):
        """SIGKILL."""
        if victim in ("database", "scheduler"):
            (self.postgres if victim == "database" else self.cluster).kill()
            return
        process = self.processes[victim]
        process.kill()
        process.join(20)
        assert process.exitcode == -signal.SIGKILL

    def folder_of(self, job):
        return self.settings.job_folder(job.id)

    def newest(self, label):
        """The submission of this label as the database has it; None without one, or while the database is away."""
        try:
            with self.database.reading() as session:
                return session.scalar(sqlalchemy.select(Submission).where(Submission.label == label))
        except sqlalchemy.exc.DBAPIError:
            return None

    def events(self, job):
        with self.database.reading() as session:
            return [(one.before, one.after) for one in queries.events(session, job.id)]

    def watch(self):
        """Start a worker again that ended by itself, as systemd does."""
        worker = self.processes["worker"]
        if worker.exitcode is not None and worker.exitcode != -signal.SIGKILL:
            self.restarts += 1
            self.start("worker")

    def strike(self, point, victim, end, environment="profile"):
        """Hand a project in whose job ends so, and kill the victim at a point; the visit, once the job is over."""
        visit = Visit(self, end, environment)
        (self.faults / point).touch()
        held = self.faults / f"{point}.held"
        self.cluster.before()
        visit.thread.start()
        self.wait_for(visit, lambda: self.go_on(visit) or held.exists(), point)
        self.cluster.before_kill(visit)
        self.kill(victim)
        if victim in self.processes:
            held.unlink()
            self.start(victim)
        else:
            # what waits there goes on while the service is away
            held.unlink()
            time.sleep(0.2)
            self.start(victim)
        self.cluster.may_end, recovered = True, time.monotonic()
        self.wait_for(visit, lambda: self.go_on(visit), "the end of the job")
        visit.took_s = time.monotonic() - recovered
        visit.thread.join(30)
        assert not visit.thread.is_alive()
        return visit

    def wait_for(self, visit, condition, what):
        """Wait for it; if in vain, all that is known of the job is shown."""
        try:
            wait_for(condition, RECOVERED_S, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.account_of(self.newest(visit.label))}") from None

    def account_of(self, job):
        """All that is known of a job, for the message of a test."""
        paths = [self.folder / "worker.log", *self.cluster.logs]
        known = "no job"
        if job is not None:
            folder = self.folder_of(job)
            known = f"{job.id} ({job.job_id}): {job.state} {job.reason} {self.events(job)}"
            paths += [*sorted(folder.glob("logs/*")), *sorted(folder.glob("slurm/**/*.json"))]
        return "\n".join([known, *ends(paths)])

    def go_on(self, visit):
        """Let the cluster go on; whether the job is over."""
        if visit.error is not None:
            raise visit.error
        self.watch()
        job = self.newest(visit.label)
        if job is not None:
            self.cluster.go_on(self, job, visit.end)
        return job is not None and job.is_over


class Visit:
    """What a person does, in a thread: upload, hand in, read the log to its end, and cancel if the job shall end so."""

    def __init__(self, rig, end, environment):
        self.rig, self.end, self.environment = rig, end, environment
        self.label, self.log, self.error, self.id = uuid.uuid4().hex, b"", None, ""
        self.thread = threading.Thread(target=self._run, daemon=True)
        content = io.BytesIO()
        # each has a project of its own, and a package that no other one has
        files = {"MLproject": MLPROJECT, "a.py": CODE, "need.txt": f"p{self.label}\n".encode()}
        if environment in files:
            make_wheel(rig.wheels, f"p{self.label}")
        with tarfile.open(fileobj=content, mode="w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        self.archive = content.getvalue()
        self.digest = hashlib.sha256(self.archive).hexdigest()

    def _run(self):
        try:
            self._ask("PUT", f"/v1/projects/{self.digest}", content=self.archive)
            asked = {"project": self.digest, "profile": "small", "environment": self.environment}
            asked |= {"label": self.label, "parameters": {"end": self.end}}
            job = self._ask("POST", "/v1/submissions", json=asked, headers={"Idempotency-Key": self.label}).json()
            self.id = job["id"]
            self._follow()
        except BaseException as error:
            self.error = error

    def _follow(self):
        is_cancelled = False
        while True:
            asked = {"offset": len(self.log), "wait": 0.2}
            answer = self._ask("GET", f"/v1/submissions/{self.id}/log", params=asked)
            self.log += answer.content
            if answer.headers["X-Log-Complete"] == "true":
                return
            if self.log and self.end == "cancelled" and not is_cancelled:
                self._ask("POST", f"/v1/submissions/{self.id}/cancel")
                is_cancelled = True

    def _ask(self, method, path, headers=None, **given):
        """As the client asks: again while there is no answer, or one that says so."""
        rig, deadline = self.rig, time.monotonic() + RECOVERED_S
        token = {"Authorization": f"Bearer {rig.provider.token(iss=rig.provider.issuer)}", **(headers or {})}
        while True:
            try:
                answer = rig.person.request(method, path, headers=token, **given)
            except httpx.TransportError:
                assert time.monotonic() < deadline, f"no answer to {method} {path}"
            else:
                if answer.status_code not in (502, 503, 504):
                    assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
                    return answer
                assert time.monotonic() < deadline, f"{method} {path}: {answer.text}"
            time.sleep(0.1)
