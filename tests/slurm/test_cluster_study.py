"""A study whose trials are jobs of the real cluster, worked on by two commands, one of which is killed."""

import json
import os
import signal

import pytest

from bhive_mltf.tracking.store import RunRecord
from tests.helpers.commands import flat
from tests.helpers.slurm_trainings import ended
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.long]
N_TRIALS = 12


def test_twelve_trials_two_workers_one_killed(cluster, shell, tmp_path):
    pytest.importorskip("optuna")
    from mlflow import MlflowClient

    space = tmp_path / "space.yml"
    space.write_text("learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}\n")
    options = {
        **{name: value for name, value in shell.options.items() if name != "--loss-weighting"},
        "--TrainingTask-loss-weighting": True, "--training-version": "trial",
        "--study": "jobs", "--space": space, "--n-trials": N_TRIALS,
        "--epochs": 1, "--prune": False, "--slurm": "local-lab", "--nodes": 1, "--ranks-per-node": 1,
    }  # fmt: skip
    before = cluster.submissions()
    killed, other = (shell.start("OptimizeTask", *flat(options)) for _ in range(2))
    logs = "OptimizeTask/**/study_jobs/trials/*/log"
    wait_for(lambda: len(list(shell.data_path.glob(logs))) > 2 or killed.poll() is not None, 400, "a third trial")
    assert killed.poll() is None, killed.communicate()
    (directory,) = shell.data_path.glob("OptimizeTask/**/study_jobs")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    output, code = ended(other, 1200)
    assert code == 0, output
    best = json.loads((directory / "best.json").read_text())
    table = json.loads((directory / "trials.json").read_text())
    assert best["states"] == {"COMPLETE": N_TRIALS}
    assert best["best"]["validation_loss"] == min(trial["validation_loss"] for trial in table)
    assert cluster.submissions() == before + N_TRIALS, "the job of the killed command was followed on"
    record = RunRecord.read(directory)
    client = MlflowClient(record.tracking_uri)
    children = client.search_runs([record.experiment_id], f"tags.`mlflow.parentRunId` = '{record.run_id}'")
    assert [child.info.status for child in children] == ["FINISHED"] * N_TRIALS
    found = sorted(child.data.metrics["Validation Loss"] for child in children)
    assert found == pytest.approx(sorted(trial["validation_loss"] for trial in table))
    study = client.get_run(record.run_id)
    assert study.info.status == "FINISHED"
    assert study.data.metrics["Validation Loss"] == best["best"]["validation_loss"]
