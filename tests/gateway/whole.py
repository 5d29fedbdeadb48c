"""A gateway in one process: API, worker, a scheduler of scripts, and a tracking server of a few routes."""

import contextlib
import os
import warnings

from bhive_mltf.gateway import app as application
from bhive_mltf.gateway.identity.mint import Minter
from bhive_mltf.gateway.inside.plan import LaunchPlan
from bhive_mltf.gateway.settings import Settings
from bhive_mltf.gateway.store.tables import Submission
from bhive_mltf.gateway.worker.leader import lead
from bhive_mltf.gateway.worker.main import tick
from bhive_mltf.gateway.worker.steps import Steps
from tests.gateway import configuration
from tests.gateway.fake_mlflow import FakeMlflow
from tests.gateway.keys import FakeProvider
from tests.helpers.fake_scheduler import FakeScheduler

with warnings.catch_warnings():
    # it asks for the successor of httpx, with which it works the same
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient


class Whole:
    """The two processes as objects; the worker does a step when it is told to."""

    def __init__(self, folder, monkeypatch, builds=None):
        self.folder, self.provider, self.mlflow = folder, FakeProvider(), FakeMlflow()
        self.scheduler = FakeScheduler(folder / "bin").install()
        monkeypatch.setenv("PATH", f"{self.scheduler.folder}{os.pathsep}{os.environ['PATH']}")
        environments = {"builds": builds is not None, "environments": {"second": str(folder / "env")}}
        content = configuration.content(
            folder,
            {"gpu": configuration.scripted(folder, gpus_per_node=2, **environments)},
            tracking_url=self.mlflow.url,
            limits={"archive_bytes": 100_000},
            builds=builds,
            tick_s=0.01,
        )
        self.settings = Settings(**content)
        self.app = application.make(self.settings, self.provider.verifier())
        self.client = TestClient(self.app, base_url="https://gateway.example")
        self.database = self.app.state.services.database
        self._term = contextlib.ExitStack()
        self.restart()

    def restart(self):
        """Begin a term as a worker that knows only what is on disk."""
        self._term.close()
        office = self._term.enter_context(lead(self.database, self.settings.spool / "worker.lock"))
        minter = Minter.load(self.settings.keys, self.settings.public_url)
        self.steps, self.office = Steps(self.settings, self.database, office, minter), office

    def close(self):
        self._term.close()
        self.database.close()
        self.mlflow.close()

    def row(self, job):
        with self.database.reading() as session:
            return session.get(Submission, job)

    def until(self, job, *states):
        """Let the worker do steps until the job is in one of these states."""
        for _ in range(40):
            if (found := self.row(job)).state in states:
                return found
            self.tick()
        raise AssertionError(f"{found.state}: {found.reason}")

    def tick(self):
        """Let the worker look once."""
        return tick(self.steps, self.database, self.office)

    def end(self, job, state, status=0):
        """Let the scheduler end the job; how the gateway sees it."""
        self.scheduler.change(self.row(job).job_id, state=state, status=status)
        return self.until(job, "succeeded", "failed", "cancelled", "refused")

    def plan(self, job):
        return LaunchPlan.read(self.settings.job_folder(job) / "private" / "launch.json")

    def run(self, job):
        (found,) = self.mlflow.of(job)
        return found
