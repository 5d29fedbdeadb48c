"""Ranks on two nodes of a real cluster, and one run through several starts of its job."""

import shutil

import pytest
import torch

from bhive_mltf.gateway.environments.wanted import read_wanted
from bhive_mltf.training.checkpointing.checkpoint import read_checkpoint
from tests.gateway import needs
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


def newest_step(person, job, metric):
    steps = {one["key"]: int(one["step"]) for one in person.tracked(job)["data"].get("metrics", [])}
    return steps.get(metric, -1)


def steps_of(person, job, metric):
    asked = {"run_id": person.show(job)["run_id"], "metric_key": metric}
    answer = person.mlflow("GET", "/api/2.0/mlflow/metrics/get-history", params=asked)
    return [int(one["step"]) for one in answer.json()["metrics"]]


def warn(lab, person, job, metric="step", seconds=60):
    """Warn a job once it is in its loop, as SLURM does before a time limit."""
    person.wait(job, "running", seconds=90)
    before = newest_step(person, job, metric)
    person.wait_for(job, lambda _: newest_step(person, job, metric) > before, seconds, f"a step after {before}")
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
    steps = steps_of(alice, job, "step")
    assert steps == list(range(len(steps)))


@pytest.fixture
def training(alice, tmp_path):
    """Hands in B-Hive's demo project with its jets for a rank on each of two nodes."""
    project = shutil.copytree(REPOSITORY / "examples" / "bhive_project", tmp_path / "project")
    for path in (REPOSITORY / "examples" / "btag_sample").glob("ntuple_*_002.root"):
        shutil.copy(path, project)
    (project / "train.txt").write_text("".join(f"{path.name}\n" for path in sorted(project.glob("*.root"))))

    def submit(**parameters):
        given = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
        options = ("-P", "filelist=train.txt", "--nodes", "2", "--resume")
        return alice.submit(project, *options, *given, profile="two-nodes")

    return submit


def test_bhive_trains_with_ranks_on_two_nodes(alice, training):
    job = training(epochs=2)
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
    outputs = alice.folder_of(job) / "work" / "ckpt" / "bhive"
    assert len(list(outputs.rglob("rank_*.log"))) == 2
    assert list(outputs.rglob("best_model.pt"))


@pytest.mark.long
def test_bhive_through_two_time_limits_gives_the_same_weights(stack, alice, training):
    """One run, two warnings: the weights are those of a job that nobody warned, bit for bit."""
    given = {"epochs": 12, "batch_size": 64}
    jobs = [training(**given), training(**given)]
    for attempt in (1, 2):
        warn(stack.lab, alice, jobs[1], "train/loss", seconds=240)
        alice.wait_for(jobs[1], lambda found: found["restarts"] == attempt, 90, f"start {attempt + 1}")  # noqa: B023
    alice.wait(jobs[0], "succeeded", seconds=400)
    found = alice.wait(jobs[1], "succeeded", seconds=400)
    assert found["restarts"] == 2
    assert [one["to"] for one in found["events"]].count("queued") == 1
    assert alice.tracked(jobs[1])["info"]["status"] == "FINISHED"
    for name in ("best_model.pt", f"model_{given['epochs'] - 1}.pt"):
        one, other = (read_checkpoint(next(alice.folder_of(job).rglob(name)))["model_state_dict"] for job in jobs)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.long
def test_keras_project_in_its_own_environment_goes_on(stack, alice):
    """Its packages are 360 MB to download, which continuous integration leaves out."""
    needs.builds()
    project = REPOSITORY / "examples" / "tensorflow_project"
    asked = read_wanted("python_env.yaml", lambda name: (project / name).read_text())
    shutil.copytree(needs.downloaded_wheels(asked.requirements), stack.wheels, dirs_exist_ok=True)
    job = alice.submit(project, "--resume", "-P", "epochs=12", "-P", "pause=2")
    alice.wait(job, "running", seconds=900)
    warn(stack.lab, alice, job, "loss", seconds=300)
    alice.wait_for(job, lambda found: found["restarts"] == 1, 90, "start 2")
    found = alice.wait(job, "succeeded", seconds=400)
    run = alice.tracked(job)
    assert run["info"]["status"] == "FINISHED"
    # each epoch once
    assert steps_of(alice, job, "loss") == list(range(12))
    assert logged(alice, job)["val_accuracy"] > 0.5
    assert {"epochs", "rate", "weights"} <= {one["key"] for one in run["data"]["params"]}
    assert len(run["outputs"]["model_outputs"]) == 1
    assert f"environment {found['env_key']} is ready" in alice.run("logs", job)[0]
