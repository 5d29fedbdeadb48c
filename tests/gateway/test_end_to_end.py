"""From `login` to a run that is FINISHED: real provider, MLflow server, cluster and sandbox."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.gateway import needs, wheels
from tests.gateway.stack import EXAMPLE, HELD, finished, installed_client
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.gateway, pytest.mark.slurm]


@pytest.fixture(scope="module")
def alice(stack):
    return stack.person("alice")


@pytest.fixture
def held(tmp_path):
    """A project that prints a line, and eight more once it may."""
    (tmp_path / "MLproject").write_text("entry_points: {main: {command: python main.py}}")
    (tmp_path / "main.py").write_text(HELD)
    return tmp_path


def test_project_runs_and_its_run_is_finished(stack, alice):
    job = alice.submit(EXAMPLE, "-P", "epochs=4", "-P", "rate=0.3")
    found = alice.wait(job, "succeeded")
    run = alice.tracked(job)
    assert run["info"]["status"] == "FINISHED"
    assert {one["key"]: one["value"] for one in run["data"]["params"]} == {"epochs": "4", "rate": "0.3"}
    metrics = {one["key"]: (one["value"], int(one["step"])) for one in run["data"]["metrics"]}
    assert metrics["loss"][1] == 3
    assert metrics["accuracy"][0] > 0.7
    assert found["argv"] == ["python", "train.py", "--epochs", "4", "--rate", "0.3", "--pause", "0"]
    assert [one["to"] for one in found["events"]][-1] == "succeeded"
    log, _ = alice.run("logs", job)
    assert "epoch 3: loss" in log
    assert json.loads(alice.run("show", job)[0]) == alice.show(job)
    assert not (stack.folder / "spool" / "jobs" / job / "private" / "token").exists()


def test_project_runs_in_an_environment_that_was_built_for_it(stack, alice, tmp_path):
    needs.builds()
    wheels.make_wheel(stack.wheels, "alpha", script=True)
    (tmp_path / "MLproject").write_text("python_env: env.yaml\nentry_points: {main: {command: alpha}}\n")
    (tmp_path / "env.yaml").write_text("python: 3.11\ndependencies: [alpha]\n")
    job = alice.submit(tmp_path)
    found = alice.wait(job, "succeeded")
    log = alice.run("logs", job)[0]
    # a script of the environment, which sees nothing but that environment
    assert log.index(f"environment {found['env_key']} is ready") < log.index("\nalpha1.0\n")
    run = alice.tracked(job)
    assert {"key": "mltf.env_key", "value": found["env_key"]} in run["data"]["tags"]
    place = run["info"]["artifact_uri"].partition(":/")[2]
    lock = alice.mlflow("GET", f"/api/2.0/mlflow-artifacts/artifacts/{place}/environment/requirements.lock")
    assert lock.text == wheels.locked(stack.wheels / "alpha-1.0-py3-none-any.whl")
    assert "no usable wheels" in alice.wait(failing(alice, stack, tmp_path), "failed")["reason"]


def failing(person, stack, folder):
    """A job that needs a package without wheels."""
    wheels.make_source(stack.wheels, "gamma")
    (folder / "env.yaml").write_text("dependencies: [gamma]\n")
    return person.submit(folder)


def test_plain_ddp_runs_on_ranks_of_a_job(alice):
    options = ("--environment", "profile", "--nodes", "2", "--resume", "-P", "epochs=3")
    job = alice.submit(EXAMPLE.parent / "ddp_project", *options, profile="two-nodes")
    alice.wait(job, "succeeded")
    metrics = {one["key"]: one for one in alice.tracked(job)["data"]["metrics"]}
    assert int(metrics["loss"]["step"]) == 2
    assert metrics["accuracy"]["value"] > 0.8
    assert alice.run("logs", job)[0].count("epoch 2: loss") == 1


def test_log_is_followed_while_the_job_runs(alice, held):
    job = alice.submit(held)
    process = alice.start("logs", "-f", job)
    first = process.stdout.readline()
    alice.wait(job, "running")
    alice.let_go(job)
    rest, err = finished(process)
    assert "line 0" in first
    assert rest.count("line") == 8
    assert "succeeded" in err


def test_log_goes_on_when_the_api_was_killed(stack, alice, held):
    job = alice.submit(held)
    process = alice.start("logs", "-f", job)
    first = process.stdout.readline()
    stack.stop("api", signal.SIGKILL)
    # handed in while nobody answers
    second = alice.start("submit", EXAMPLE, "--profile", "lab", "-P", "epochs=1")
    stack.start_api()
    alice.let_go(job)
    rest, _ = finished(process)
    assert (first + rest).splitlines() == [f"line {n}" for n in range(9)]
    out, _ = finished(second)
    alice.wait(out.split()[1].rstrip(","), "succeeded")


def test_cancelled_job_ends_in_a_minute_its_run_killed(stack, alice):
    job = alice.submit(EXAMPLE, "-P", "epochs=600", "-P", "pause=1")
    alice.wait(job, "running")
    begun = time.monotonic()
    alice.run("cancel", job)
    found = alice.wait(job, "cancelled")
    assert time.monotonic() - begun < 60
    assert found["reason"] == "cancelled by its owner"
    assert alice.tracked(job)["info"]["status"] == "KILLED"
    # its node may be busy with the end for a moment
    asked = ("squeue", "--noheader", "--jobs", found["job_id"])
    wait_for(lambda: stack.lab.run(*asked).stdout.strip() == "", 30, "its leaving the queue")


def test_failing_project_leaves_a_failed_run_with_its_reason(alice):
    job = alice.submit(EXAMPLE, "-e", "crash")
    found = alice.wait(job, "failed")
    run = alice.tracked(job)
    assert found["reason_code"] == "project_exit"
    assert run["info"]["status"] == "FAILED"
    tags = {one["key"]: one["value"] for one in run["data"]["tags"]}
    assert "exit code 1" in tags["mltf.reason"]
    assert "this entry point ends with an error" in alice.run("logs", job)[0]


@pytest.mark.parametrize("point", ["before_sbatch", "after_sbatch", "after_record"])
def test_worker_killed_around_sbatch_hands_the_job_in_once(stack, alice, point):
    stack.stop("worker")
    before = stack.lab.submissions()
    job = alice.submit(EXAMPLE, "-P", "epochs=2")
    faults = stack.folder / "faults"
    faults.mkdir(exist_ok=True)
    (faults / point).touch()
    held = faults / f"{point}.held"
    stack.start_worker(MLTF_FAULTS=str(faults))
    alice.wait_for(job, lambda _: held.exists(), 60, point)
    stack.stop("worker", signal.SIGKILL)
    held.unlink()
    assert alice.show(job)["state"] == "submitting"
    stack.start_worker()
    alice.wait(job, "succeeded")
    assert stack.lab.submissions() == before + 1
    assert alice.tracked(job)["info"]["status"] == "FINISHED"


def test_jobs_of_another_person_are_not_there(stack, alice):
    job = alice.submit(EXAMPLE, "-P", "epochs=1")
    alice.wait(job, "succeeded")
    bob = stack.person("bob")
    for verb in ("show", "cancel", "logs"):
        _, err = bob.run(verb, job, code=1)
        assert "you have no such job" in err
    run_id = alice.show(job)["run_id"]
    answer = bob.mlflow("GET", "/api/2.0/mlflow/runs/get", params={"run_id": run_id})
    assert answer.status_code == 403
    assert bob.run("jobs")[0] == ""


def test_guest_without_a_role_gets_nothing(stack):
    guest = stack.person("guest-1")
    _, err = guest.run("jobs", code=1)
    assert "none of the roles" in err


def test_refresh_and_sign_out(stack):
    carol = stack.person("carol")
    place = carol.home / ".config" / "bhive-mltf" / "tokens.json"
    assert place.stat().st_mode & 0o077 == 0
    content = json.loads(place.read_text())
    place.write_text(json.dumps({**content, "expires_at": time.time() - 1}))
    carol.run("whoami")
    renewed = json.loads(place.read_text())
    assert renewed["access_token"] != content["access_token"]
    assert renewed["refresh_token"] != ""
    assert "signed out" in carol.run("logout")[0]
    assert not place.exists()
    _, err = carol.run("jobs", code=1)
    assert "you are not signed in" in err


def mlflow_run(person, *options, code=0, script=None):
    """`mlflow run` of the example, or a script, as this person."""
    command = ["-c", script] if script else ["-m", "mlflow", "run", str(EXAMPLE), "--backend", "mltf", *options]
    variables = {**person.environment, "PYTHONPATH": str(installed_client())}
    options = {"cwd": person.home, "env": variables, "capture_output": True, "text": True, "timeout": 180}
    done = subprocess.run([sys.executable, *command], check=False, **options)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done


def test_mlflow_run_with_the_backend_of_the_installed_client(alice):
    done = mlflow_run(alice, "-P", "epochs=3", "--backend-config", '{"profile": "lab", "wait": true, "label": "mlrun"}')
    assert "epoch 2: loss" in done.stdout
    (line,) = [one for one in alice.run("jobs", "--label", "mlrun")[0].splitlines() if one]
    assert line.split()[1] == "succeeded"
    run = alice.tracked(line.split()[0])
    assert run["info"]["status"] == "FINISHED"
    assert {one["key"]: one["value"] for one in run["data"]["params"]} == {"epochs": "3"}


def test_mlflow_run_that_is_waited_for_fails_with_its_job(alice):
    done = mlflow_run(alice, "-e", "crash", "--backend-config", '{"profile": "lab", "wait": true}', code=1)
    assert "failed: rank 0 failed" in done.stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{}", "names no profile"),
        ('{"profle": "lab"}', "`profle` is no key"),
        ('{"profile": "gpu"}', "you may not use"),
    ],
)
def test_mlflow_run_with_a_wrong_backend_config_is_one_sentence(alice, config, message):
    assert message in mlflow_run(alice, "--backend-config", config, code=1).stderr


SCRIPT = f"""
import mlflow.projects
from mlflow.entities import RunStatus
run = mlflow.projects.run({str(EXAMPLE)!r}, backend="mltf", backend_config={{"profile": "lab"}},
    parameters={{"epochs": 500, "pause": 1.0}}, synchronous=False)
assert run.get_status() in (RunStatus.SCHEDULED, RunStatus.RUNNING)
run.cancel()
assert run.get_status() == RunStatus.KILLED
assert run.wait() is False
assert mlflow.MlflowClient().get_run(run.run_id).info.status == "KILLED"
"""


def test_submitted_run_of_python_is_cancelled_and_then_killed(alice):
    mlflow_run(alice, script=SCRIPT)
