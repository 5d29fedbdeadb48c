"""From `login` to a run that is FINISHED: real provider, MLflow server, cluster and sandbox."""

import json
import time

import pytest

from tests.gateway.stack import EXAMPLE

pytestmark = [pytest.mark.gateway, pytest.mark.slurm]


@pytest.fixture(scope="module")
def alice(stack):
    return stack.person("alice")


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
    assert not (stack.folder / "spool" / "jobs" / job / "private" / "token").exists()


def test_log_is_followed_while_the_job_runs(alice):
    job = alice.submit(EXAMPLE, "-P", "epochs=8", "-P", "pause=1")
    process = alice.start("logs", "-f", job)
    first = process.stdout.readline()
    seen = alice.show(job)["state"]
    rest, err = process.communicate(timeout=120)
    assert "epoch 0" in first
    assert seen == "running"
    assert rest.count("epoch") == 7
    assert process.returncode == 0
    assert "succeeded" in err


def test_cancelled_job_ends_within_a_minute_and_its_run_is_killed(stack, alice):
    job = alice.submit(EXAMPLE, "-P", "epochs=600", "-P", "pause=1")
    alice.wait(job, "running")
    begun = time.monotonic()
    alice.run("cancel", job)
    found = alice.wait(job, "cancelled")
    assert time.monotonic() - begun < 60
    assert found["reason"] == "cancelled by its owner"
    assert alice.tracked(job)["info"]["status"] == "KILLED"
    assert stack.lab.run("squeue", "--noheader").stdout.strip() == ""


def test_project_that_fails_leaves_a_run_that_is_failed_with_its_reason(alice):
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
    dying = stack.start_worker(MLTF_FAULT=point)
    assert dying.wait(60) == -9
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
