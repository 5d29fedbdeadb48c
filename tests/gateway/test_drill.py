"""Drills of an operator on real servers: all is lost and restored, and MLflow is brought to a new version."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bhive_mltf.gateway.identity.mint import Minter
from tests.gateway import needs
from tests.gateway.postgres import Postgres
from tests.gateway.stack import EXAMPLE, Stack, wait_for_url

pytestmark = pytest.mark.gateway
FILES = Path(__file__).parents[2] / "deploy" / "base" / "files"
DATABASES = ("mltf", "mlflow")


class Site:
    """Servers on a database server of their own, as `deploy/` sets it up."""

    def __init__(self, folder):
        self.folder, self.postgres = folder, Postgres()
        for name in ("secrets", "backups", "artifacts"):
            (folder / name).mkdir()
        for name in ("mltf_password", "mlflow_password"):
            (folder / "secrets" / name).write_text("any")
        (folder / "secrets" / "pgpass").write_text("*:*:*:*:any\n")
        self.variables = {
            "MLTF_SECRETS": str(folder / "secrets"),
            "MLTF_BACKUPS": str(folder / "backups"),
            "MLTF_ARTIFACTS": str(folder / "artifacts"),
            "TMPDIR": str(folder),
        }
        self.script("databases.sh")
        self.stack = Stack(folder, database_url=self.postgres.url("mltf", "mltf"))
        self.stack.stores = dict.fromkeys(("tracking", "users"), self.postgres.url("mlflow", "mlflow"))

    def script(self, name, *arguments):
        return self.postgres.run("sh", FILES / name, *arguments, environment=self.variables)

    def start(self, *names):
        for name in names:
            getattr(self.stack, f"start_{name}")()
        if "mlflow" in names:
            wait_for_url(f"{self.stack.tracking}/health", 180)

    def stop(self, *names):
        for name in names:
            self.stack.stop(name)

    def counts(self):
        """Rows of each table of both databases."""
        found = {}
        for database in DATABASES:
            tables = self.postgres.query(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            # of all tables at once: a program is started for each question
            sql = " UNION ALL ".join(f"SELECT '{one}', count(*) FROM \"{one}\"" for one in tables.split())
            rows = [line.split("|") for line in self.postgres.query(database, sql).splitlines()]
            found |= {f"{database}.{table}": int(number) for table, number in rows}
        return found

    def close(self):
        self.stack.stop_all()
        self.postgres.close()


@pytest.fixture
def site():
    folder = Path(tempfile.mkdtemp(prefix="mltf-drill-", dir="/tmp"))
    made = Site(folder)
    yield made
    made.close()
    if not os.environ.get("MLTF_KEEP"):
        shutil.rmtree(folder, ignore_errors=True)


def test_all_that_was_lost_is_there_after_a_restore(site):
    site.start("provider", "mlflow", "api")
    alice = site.stack.person("alice")
    job = alice.show(alice.submit(EXAMPLE, "--label", "before"))
    content = os.urandom(100_000)
    place = f"/api/2.0/mlflow-artifacts/artifacts/{job['experiment_id']}/{job['run_id']}/artifacts/weights.bin"
    assert alice.mlflow("PUT", place, content=content).status_code == 200
    site.script("backup.sh")
    before = site.counts()
    assert before["mltf.submission"] == before["mlflow.runs"] == 1
    # what comes after the backup is lost with it
    alice.submit(EXAMPLE, "--label", "after")
    with pytest.raises(AssertionError, match="sessions use the databases: stop API, MLflow and worker first"):
        site.script("restore.sh")
    site.stop("api", "mlflow")
    site.postgres.run("dropdb", "mltf")
    shutil.rmtree(site.folder / "artifacts")
    assert "restored the backup" in site.script("restore.sh")
    assert site.counts() == before
    site.start("mlflow", "api")
    assert alice.show(job["id"]) == job
    assert alice.tracked(job["id"])["info"]["status"] == "SCHEDULED"
    assert hashlib.sha256(alice.mlflow("GET", place).content).digest() == hashlib.sha256(content).digest()
    # the numbers of new rows go on where the old ones ended
    alice.submit(EXAMPLE, "--label", "again")
    assert [one["label"] for one in alice.ask("GET", "/v1/submissions").json()["submissions"]] == ["again", "before"]
    # the database that nobody dropped is there still, under its new name
    names = site.postgres.query("postgres", "SELECT datname FROM pg_database").split()
    (kept,) = [name for name in names if name.startswith("mlflow_before_")]
    assert site.postgres.query(kept, "SELECT count(*) FROM runs") == "2"
    with pytest.raises(AssertionError, match="permission denied"):
        site.postgres.query("mlflow", "SELECT 1", user="mltf")


# what a training of the version before leaves, and the users of its basic authentication
BEFORE = """
import json, sys
import mlflow
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
uri, artifacts, name = sys.argv[1:]
mlflow.set_tracking_uri(uri)
experiment = mlflow.create_experiment(f"{name}/training", artifact_location="mlflow-artifacts:/1")
with mlflow.start_run(experiment_id=experiment) as run:
    mlflow.log_params({"rate": "0.3", "epochs": "2"})
    for step in range(50):
        mlflow.log_metrics({"loss": 1 / (1 + step), "accuracy": step / 50}, step=step)
    mlflow.set_tag("mltf.submission", "j1")
users = SqlAlchemyStore()
users.init_db(uri)
users.create_user(name, "a long word that nobody knows")
users.create_experiment_permission(experiment, name, "MANAGE")
print(json.dumps([mlflow.__version__, experiment, run.info.run_id]))
"""
KEPT = ("experiments", "runs", "params", "metrics", "latest_metrics", "tags", "users")


def test_database_of_the_mlflow_before_is_upgraded(site):
    uri = site.stack.stores["tracking"]
    variables = {**os.environ, "PYTHONPATH": str(needs.mlflow_before())}
    done = run([sys.executable, "-c", BEFORE, uri, str(site.folder / "artifacts"), "u-alice"], env=variables)
    version, experiment, run_id = json.loads(done.stdout.splitlines()[-1])
    assert version == needs.MLFLOW_BEFORE
    before = {table: site.counts()[f"mlflow.{table}"] for table in KEPT}
    assert (before["runs"], before["metrics"]) == (1, 100)
    site.script("backup.sh")
    # as the operator's guide says it
    run([sys.executable, "-m", "mlflow", "db", "upgrade", uri])
    run([sys.executable, "-m", "mlflow.server.auth", "db", "upgrade", "--url", uri])
    assert {table: site.counts()[f"mlflow.{table}"] for table in KEPT} == before
    site.start("mlflow")
    minter = Minter.load(site.folder / "keys", site.stack.url)
    for name, code in (("u-alice", 200), ("u-bob", 403)):
        answer = ask(site, minter.mint(name, "user", 60), "runs/get", {"run_id": run_id})
        assert answer.status_code == code, answer.text
        if code == 200:
            found = {one["key"]: one["value"] for one in answer.json()["run"]["data"]["params"]}
            assert found == {"rate": "0.3", "epochs": "2"}
    history = ask(
        site, minter.mint("u-alice", "user", 60), "metrics/get-history", {"run_id": run_id, "metric_key": "loss"}
    )
    assert len(history.json()["metrics"]) == 50


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def ask(site, token, path, params):
    import httpx

    headers = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"{site.stack.tracking}/api/2.0/mlflow/{path}", params=params, headers=headers, timeout=60)
