"""Ranks on two nodes of a real cluster, and one run through several starts of its job."""

import shutil

import pytest

from tests.gateway.stack import REPOSITORY

pytestmark = [pytest.mark.gateway, pytest.mark.slurm]
COUNTING = """
import itertools, os, pathlib, signal, sys, time
import mlflow
warned = []
signal.signal(signal.SIGUSR2, lambda *_: warned.append(1))
state = pathlib.Path(os.environ["MLTF_CHECKPOINT_DIR"]) / "state"
begun = int(state.read_text()) if state.exists() else 0
if os.environ["MLTF_RESUME"] != str(int(begun > 0)):
    sys.exit("it was not told what to do")
with open(state.with_name("starts"), "a") as starts:
    starts.write(".")
last = state.with_name("starts").stat().st_size == 3
with mlflow.start_run():
    # until it is warned, however slow whoever warns it is; the last start ends by itself
    for step in range(begun, begun + 4) if last else itertools.count(begun):
        mlflow.log_metric("step", step, step=step)
        state.write_text(str(step + 1))
        if warned and not last:
            sys.exit(75)
        time.sleep(0.5)
"""


@pytest.fixture(scope="module")
def alice(stack):
    return stack.person("alice-of-two-nodes")


def logged(person, job):
    return {one["key"]: one["value"] for one in person.tracked(job)["data"].get("metrics", [])}


def warn(lab, person, job):
    """Warn a job once it is in its loop, as SLURM does before a time limit."""
    person.wait(job, "running", seconds=90)
    before = logged(person, job).get("step", -1)
    person.wait_for(job, lambda _: logged(person, job).get("step", -1) > before, 60, f"a step after {before}")
    done = lab.run("scancel", "--signal=USR2", person.show(job)["job_id"])
    assert done.returncode == 0, done.stderr


def test_one_run_through_two_time_limits(stack, alice, tmp_path):
    (tmp_path / "MLproject").write_text("name: counting\nentry_points:\n  main:\n    command: python main.py\n")
    (tmp_path / "main.py").write_text(COUNTING)
    job = alice.submit(tmp_path, "--resume", profile="two-nodes")
    for attempt in (1, 2):
        warn(stack.lab, alice, job)
        alice.wait_for(job, lambda found: found["restarts"] == attempt, 90, f"start {attempt + 1}")  # noqa: B023
    found = alice.wait(job, "succeeded", seconds=180)
    assert found["restarts"] == 2
    assert alice.tracked(job)["info"]["status"] == "FINISHED"
    assert [one["to"] for one in found["events"]].count("queued") == 1
    history = alice.mlflow(
        "GET", "/api/2.0/mlflow/metrics/get-history", params={"run_id": found["run_id"], "metric_key": "step"}
    )
    steps = [int(one["step"]) for one in history.json()["metrics"]]
    assert steps == list(range(len(steps)))


def test_bhive_trains_with_ranks_on_two_nodes(stack, alice, tmp_path):
    project = shutil.copytree(REPOSITORY / "examples" / "bhive_project", tmp_path / "project")
    for path in (REPOSITORY / "examples" / "btag_sample").glob("ntuple_*_002.root"):
        shutil.copy(path, project)
    (project / "train.txt").write_text("".join(f"{path.name}\n" for path in sorted(project.glob("*.root"))))
    job = alice.submit(
        project, "-P", "epochs=2", "-P", "filelist=train.txt", "--nodes", "2", "--resume", profile="two-nodes"
    )
    found = alice.wait(job, "succeeded", seconds=300)
    run = alice.tracked(job)
    assert run["info"]["status"] == "FINISHED"
    metrics = logged(alice, job)
    assert {"Training Loss", "Validation Loss", "train/loss"} <= set(metrics)
    # of the first node, and of the other one by its name
    assert {"system/cpu_utilization_percentage", "system/n2/cpu_utilization_percentage"} <= set(metrics)
    log = alice.run("logs", job)[0]
    assert "with 2 ranks" in log
    assert found["nodes"] == 2
    outputs = stack.folder / "spool" / "jobs" / job / "work" / "ckpt" / "bhive"
    assert len(list(outputs.rglob("rank_*.log"))) == 2
    assert list(outputs.rglob("best_model.pt"))
