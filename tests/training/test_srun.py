"""A rank as a task of srun: who it is, signals that come early, what it leaves for its job."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bhive_mltf.ranks import srun
from bhive_mltf.ranks.files import JOB_FOLDER_VARIABLE
from bhive_mltf.training.monitoring.observers import EpochResult
from bhive_mltf.training.monitoring.progress_file import ProgressFile
from tests.helpers.standin import REPOSITORY, plan

TASK = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}


@pytest.fixture
def task(monkeypatch):
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RANK", raising=False)
    yield
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)


def test_global_rank_for_data_and_local_rank_for_the_device(task):
    assert srun.is_srun_task()
    srun.take_identity()
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "4", "1"]
    assert not srun.is_srun_task(), "another launcher inside a step names its own ranks"


def test_a_batch_step_is_no_rank(task, monkeypatch):
    monkeypatch.delenv("SLURM_STEP_ID")
    assert not srun.is_srun_task()


def test_word_for_the_job_only_inside_one(tmp_path, monkeypatch):
    srun.leave_stopped_note(5, signal.SIGUSR2)
    assert not srun.goes_on(signal.SIGUSR2)
    assert srun.attempt_tags() == {}
    monkeypatch.setenv(JOB_FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-2]")
    srun.leave_stopped_note(5, None)
    content = json.loads((tmp_path / "stopped.json").read_text())
    assert (content["attempt"], content["step"], content["signal"]) == (3, 5, "")
    assert srun.goes_on(signal.SIGUSR2)
    assert srun.goes_on(None)
    assert not srun.goes_on(signal.SIGTERM)
    assert srun.attempt_tags()["slurm_job_id"] == "41"
    assert "n[1-2]" in srun.attempt_tags()["slurm_attempt_3"]


EARLY = """
import os, signal, sys
from bhive_mltf.ranks.process import begin_rank
begin_rank()
os.kill(os.getpid(), signal.SIGUSR2)
from bhive_mltf.ranks.signals import StopSignals
with StopSignals() as signals:
    print(signals.received.name, os.environ["RANK"])
"""


def test_a_warning_before_the_slow_imports_is_kept():
    environment = {**os.environ, **TASK}
    environment.pop("RANK", None)
    done = subprocess.run(
        [sys.executable, "-c", EARLY], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["SIGUSR2", "3"], done.stderr


def test_progress_for_who_follows(tmp_path, monkeypatch):
    monkeypatch.setattr("bhive_mltf.training.monitoring.progress_file.INTERVAL", 0.0)
    path = tmp_path / "slurm" / "progress.json"
    observer = ProgressFile(path)
    observer.begin(plan(tmp_path, epochs=3), first_epoch=1, global_step=10, world_size=4)
    observer.phase("training", 1, done=2, total=12)
    time.sleep(0.02)
    for _ in range(2):
        observer.advance(25)
    content = json.loads(path.read_text())
    assert (content["epoch"], content["of_epochs"], content["step"]) == (2, 3, 12)
    assert content["jets_per_s"] > 0
    assert content["eta_s"] > 0
    observer.phase("validation", 1, 0, 3)
    observer.advance(25)
    assert json.loads(path.read_text())["step"] == 12
    observer.epoch(EpochResult(1, None, None, 1.0, 1.0, True))
    assert set(json.loads(path.read_text())) == {"epoch", "of_epochs", "step", "jets_per_s", "eta_s", "time"}
