"""The worker, and the services behind it away; see `test_faults` for what is killed."""

import hashlib
import io
import os
import tarfile
import time

import pytest

from bhive_mltf.gateway import settings
from bhive_mltf.gateway.identity.provider import Caller
from bhive_mltf.gateway.projects import blobs
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.database import Database
from bhive_mltf.gateway.store.tables import Project, State, Submission
from tests.gateway import children, configuration
from tests.gateway.fake_mlflow import FakeMlflow
from tests.gateway.keys import ISSUER
from tests.helpers.fake_scheduler import FakeScheduler
from tests.helpers.waiting import wait_for

pytestmark = pytest.mark.gateway


class Bench:
    """A worker as a process of its own, with a scheduler of scripts and a tracking server of a few routes."""

    def __init__(self, folder):
        self.folder = folder
        self.scheduler, self.mlflow = FakeScheduler(folder / "bin").install(), FakeMlflow()
        profiles = {"small": configuration.scripted(folder)}
        content = configuration.content(folder, profiles, tracking_url=self.mlflow.url, tick_s=0.1, submit_timeout_s=2)
        self.config = configuration.write(folder, content)
        self.settings = settings.load(self.config)
        self.database = Database(self.settings.database_url)
        self.database.create()
        self.process = None

    def start(self):
        variables = {"PATH": f"{self.scheduler.folder}{os.pathsep}{os.environ['PATH']}"}
        self.process = children.start(["worker"], self.config, self.folder / "worker.log", variables)

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.join(20)
            assert self.process.exitcode == 0

    def close(self):
        self.stop()
        self.database.close()
        self.mlflow.close()

    def submit(self, **values):
        """A submission as the API leaves it: accepted, with a run."""
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("a.py"), io.BytesIO())
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        path = blobs.path_of(self.settings.spool, digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())
        caller = Caller(ISSUER, "alice", "cli", "Alice", frozenset({"user"}), 0.0)
        with self.database.writing() as session:
            owner = queries.owner_of(session, caller)
            if session.get(Project, digest) is None:
                session.add(Project(digest=digest, bytes=0, files=1, name="", entry_points={}))
                session.flush()
            made = {
                "owner": owner.id,
                "idem_key": str(time.time_ns()),
                "request_hash": "",
                "state": State.ACCEPTED.value,
                "digest": digest,
                "entry_point": "main",
                "params": {},
                "argv": ["python", "a.py"],
                "profile": "small",
                "hours": 1.0,
                "experiment": "u/x",
                "experiment_id": "1",
                **values,
            }
            job = Submission(**made)
            session.add(job)
            session.flush()
            tags = [{"key": "mltf.submission", "value": job.id}]
            if job.state != State.CREATING.value:
                job.run_id = self.mlflow.answer("runs/create", {"tags": tags})[1]["run"]["info"]["run_id"]
            return job.id

    def cancel(self, job):
        with self.database.writing() as session:
            session.get(Submission, job).cancel_at = time.time()

    def look(self, job):
        with self.database.reading() as session:
            return session.get(Submission, job)

    def wait(self, job, state, seconds=60):
        try:
            wait_for(lambda: self.look(job).state == state or self.look(job).is_over, seconds)
        except AssertionError:
            raise AssertionError(
                f"{self.look(job).state}\n{(self.folder / 'worker.log').read_text()[-3000:]}"
            ) from None
        found = self.look(job)
        assert found.state == state, (found.state, found.reason, (self.folder / "worker.log").read_text()[-3000:])
        return found

    def play(self, job, end):
        """Be the cluster until the job is over."""

        def step():
            for job_id, one in self.scheduler.jobs.items():
                if one["state"] == "PENDING":
                    self.scheduler.change(job_id, state="RUNNING")
                elif one["state"] == "RUNNING" and self.look(job).state == "running":
                    if end == "cancelled":
                        self.cancel(job)
                    else:
                        self.scheduler.change(job_id, state=end, status=0 if end == "COMPLETED" else 256)
            return self.look(job).is_over or self.process.exitcode is not None

        wait_for(step, 60, "the end of the job")


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


def test_token_of_a_job_is_for_its_owner_only(bench):
    job = bench.submit()
    bench.start()
    bench.wait(job, "queued")
    folder = bench.settings.job_folder(job)
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "private" / "token").stat().st_mode & 0o077 == 0
    token = (folder / "private" / "token").read_text()
    for path in (p for p in bench.folder.rglob("*") if p.is_file() and p.name != "token"):
        assert token.encode() not in path.read_bytes(), path
    script = (folder / "slurm" / "job.sh").read_text()
    assert "#SBATCH --no-requeue" in script
    (one,) = bench.scheduler.jobs.values()
    assert "X509_USER_PROXY" not in one["environment"]


def test_answer_of_sbatch_that_is_lost_makes_no_second_job(bench):
    bench.scheduler.fail("sbatch", "TAKEN Unable to contact slurm controller")
    job = bench.submit()
    bench.start()
    bench.wait(job, "queued", 30)
    assert len(bench.scheduler.jobs) == 1


def test_absent_scheduler_holds_up_no_other_job_and_loses_none(bench):
    first = bench.submit()
    bench.start()
    bench.wait(first, "queued")
    bench.scheduler.fail("sbatch", "Unable to contact slurm controller")
    second = bench.submit()
    bench.wait(second, "submitting")
    (job_id,) = bench.scheduler.jobs
    bench.scheduler.change(job_id, state="COMPLETED")
    bench.wait(first, "succeeded", 15)
    bench.scheduler.fail("sbatch", "")
    bench.wait(second, "queued", 30)
    assert len(bench.scheduler.jobs) == 2


def test_questions_without_an_answer_are_no_verdict(bench):
    job = bench.submit()
    bench.start()
    bench.wait(job, "queued")
    for name in ("squeue", "scontrol"):
        bench.scheduler.fail(name, "Unable to contact slurm controller")
    asked = len(bench.scheduler.calls("squeue"))
    wait_for(lambda: len(bench.scheduler.calls("squeue")) > asked + 3, what="questions in vain")
    assert bench.look(job).state == "queued"
    for name in ("squeue", "scontrol"):
        bench.scheduler.fail(name, "")
    bench.play(job, "COMPLETED")
    bench.wait(job, "succeeded")


def test_job_that_is_held_since_its_launch_failed_is_released(bench):
    job = bench.submit()
    bench.start()
    bench.wait(job, "queued")
    (job_id,) = bench.scheduler.jobs
    bench.scheduler.change(job_id, reason="launch failed requeued held", restarts=1)
    wait_for(lambda: bench.scheduler.jobs[job_id]["reason"] == "None", what="its release")
    bench.play(job, "COMPLETED")
    bench.wait(job, "succeeded")
    assert [call[1] for call in bench.scheduler.calls("scontrol")].count("release") == 1


def test_absent_tracking_server_delays_the_end_and_nothing_else(bench):
    job = bench.submit()
    bench.start()
    bench.wait(job, "queued")
    bench.mlflow.is_away = True
    (job_id,) = bench.scheduler.jobs
    bench.scheduler.change(job_id, state="RUNNING")
    bench.wait(job, "running")
    bench.scheduler.change(job_id, state="COMPLETED")
    bench.wait(job, "closing")
    wait_for(lambda: bench.mlflow.refused > 3, what="calls in vain")
    assert bench.look(job).state == "closing"
    bench.mlflow.is_away = False
    bench.wait(job, "succeeded")
    assert bench.mlflow.of(job)[0]["status"] == "FINISHED"


def test_refused_job_is_told_why_and_its_run_has_failed(bench):
    (bench.folder / "site.yml").write_text((bench.folder / "site.yml").read_text() + "partition: nowhere\n")
    job = bench.submit()
    bench.start()
    found = bench.wait(job, "refused")
    assert "Invalid partition name" in found.reason
    assert bench.mlflow.of(job)[0]["status"] == "FAILED"


def test_submission_never_tracked_is_refused_after_a_while(bench):
    job = bench.submit(state="creating", created_at=time.time() - 200)
    bench.start()
    assert bench.wait(job, "refused").reason_code == "tracking"


@pytest.mark.parametrize("state", ["accepted", "preparing", "submitting"])
def test_job_cancelled_early_is_never_handed_in(bench, state):
    job = bench.submit(state=state)
    bench.cancel(job)
    bench.start()
    bench.wait(job, "cancelled")
    assert bench.scheduler.jobs == {}
    assert bench.mlflow.of(job)[0]["status"] == "KILLED"


def test_archive_changed_on_disk_is_refused(bench):
    job = bench.submit()
    for path in (bench.settings.spool / "blobs").rglob("*"):
        if path.is_file():
            path.write_bytes(b"something else")
    bench.start()
    assert bench.wait(job, "refused").reason_code == "refused"


def test_second_worker_waits_and_a_former_leader_writes_nothing(bench):
    from bhive_mltf.gateway.worker.leader import lead

    with lead(bench.database, bench.settings.spool / "other.lock") as former:
        with former.writing():
            pass
        with bench.database.writing() as session:
            queries.take_office(session, "another")
        with pytest.raises(queries.NotLeadingError), former.writing():
            pass


@pytest.mark.parametrize(
    ("state", "code", "reason_code"),
    [("TIMEOUT", 0, "time_limit"), ("OUT_OF_MEMORY", 0, "out_of_memory"), ("FAILED", 256, "project_exit")],
)
def test_reason_of_an_end_by_the_scheduler(bench, state, code, reason_code):
    job = bench.submit()
    bench.start()
    bench.wait(job, "queued")
    (job_id,) = bench.scheduler.jobs
    bench.scheduler.change(job_id, state=state, status=code)
    found = bench.wait(job, "failed")
    assert found.reason_code == reason_code
    assert found.reason != ""
