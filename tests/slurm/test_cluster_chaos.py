"""What goes wrong at a facility, by `law run` on the real cluster: state, status of the run, message, no lost work."""

import contextlib
import shutil
import sys
import threading
import time

import pytest

from bhive_mltf.slurm.batch_step.verdict import ExitCode
from bhive_mltf.slurm.record import JobRecord
from tests.helpers import slow_model as slow
from tests.helpers.slurm_trainings import (
    TWO,
    Shell,
    assert_finished,
    assert_same_weights,
    ended,
    write_profile,
)
from tests.helpers.waiting import wait_for
from tests.slurm.conftest import programs

pytestmark = pytest.mark.slurm


def job_of(directory):
    """The id of a directory's job; None while there is none."""
    record = JobRecord.read(directory)
    return record and record.job_id


@contextlib.contextmanager
def filled(path):
    """No byte is free on the disk of `path`, whatever else is removed from it."""
    over = threading.Event()

    def fill():
        with path.open("wb", buffering=0) as file:
            while not over.is_set():
                try:
                    file.write(bytes(2**20))
                except OSError:
                    over.wait(0.01)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        path.unlink()


def test_the_real_time_limit_without_sacct_or_squeue(cluster, shell, two_local, tmp_path):
    """A limit of one minute, reached by steps of four seconds in the first attempt."""
    silent = tmp_path / "silent"
    squeue = f'[ -e "{silent}" ] && echo "squeue: error: Unable to contact slurm controller" >&2 && exit 1\n'
    path = programs(tmp_path / "bin", without=["sacct"], squeue=f'{squeue}exec "{shutil.which("squeue")}" "$@"')
    profile = write_profile(tmp_path / "minute.yml", hours=1 / 61, signal_seconds=15, environment={slow.SECONDS: "4"})
    training = shell.training("limit", **{**TWO, "slurm": profile}, model_name="tests.helpers.slow_model:SlowDeepJet")
    before = cluster.submissions()
    command = training.start(PATH=path)
    training.job_id()
    silent.touch()
    time.sleep(60)
    silent.unlink()
    training.wait_for_attempt(2)
    # a second attempt of a minute may be too short for a slow machine to start its ranks
    cluster.run("scontrol", "update", f"jobid={training.job_id()}", "timelimit=20")
    output, code = ended(command)
    assert code == 0, output
    assert "Unable to contact slurm controller; the job may go on, asking again" in output
    assert "the scheduler answers again" in output
    attempts = training.attempts()
    assert attempts[-1].outcome == "done"
    # warned in time; or, on a slow machine, ended by the limit itself and put back by the command that follows
    assert {attempt.outcome for attempt in attempts[:-1]} <= {"stopped", "ended", "running"}
    assert attempts[1].start - attempts[0].start < 150
    assert_same_weights(two_local, training)
    assert_finished(training, attempts=len(attempts))
    assert cluster.submissions() == before + 1


def test_a_full_disk_is_named_and_goes_on_once_there_is_room(cluster, shell, small_disk, two_local, tmp_path):
    # no apostrophe, with which MLflow makes no store
    folder = small_disk / '50% "full"; $(ü) \\ #\n'
    folder.mkdir()
    full = Shell(folder, shell.environment["LAW_HOME"], cluster, shell.options["--filelist"])
    # the store of the runs is on another disk
    full.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"
    shutil.copytree(shell.data_path / "DatasetConstructorTask", full.data_path / "DatasetConstructorTask")
    training = full.training("full", **TWO)
    command = training.start()
    training.wait_for_step(4)
    with filled(small_disk / "filler"):
        output, code = ended(command)
    assert code == 40, output
    job = cluster.run("scontrol", "show", "job", training.job_id()).stdout
    assert f"ExitCode={int(ExitCode.NO_SPACE)}:0" in job
    assert "ended as FAILED" in output
    assert "no space is left where the outputs go: make room, then type the command again" in output, output
    run, _, _ = training.mlflow_run()
    assert run.info.status == "FAILED"
    assert "no space is left where the outputs go" in run.data.tags["failure"]
    done = training.run()
    assert done.returncode == 0, done.stdout
    assert_same_weights(two_local, training)
    run, runs, values = training.mlflow_run()
    assert (run.info.status, runs, values) == ("FINISHED", 1, 1)


def test_each_task_of_a_chain_runs_under_its_own_profile(cluster, shell, tmp_path):
    training_profile = write_profile(tmp_path / "many_cores.yml", partition="short", cpus_per_rank=2, hours=0.1)
    dataset_profile = write_profile(tmp_path / "one_core.yml", partition="main")
    training = shell.training("chain", dataset_version="chain", nodes=2, ranks_per_node=1, epochs=1)
    chosen = ("--DatasetConstructorTask-slurm", dataset_profile, "--TrainingTask-slurm", training_profile)
    chosen += ("--ConvertNtuples-slurm", dataset_profile, "--ConvertNtuples-tasks-per-job", 2)
    before = cluster.submissions()
    options = [part for part in training.options if "loss-weighting" not in str(part) and part is not True]
    shell.run("InferenceTask", *options, "--test-dataset-version", "chain", *chosen)
    dataset = shell.data_path / "DatasetConstructorTask/offline_run3/chain"
    seen = [
        cluster.run("squeue", "-h", "--states=all", "-j", job_of(directory), "-o", "%P %C %D").stdout.split()
        for directory in (dataset, training.directory)
    ]
    assert seen == [["main", "1", "1"], ["short", "4", "2"]]
    assert cluster.submissions() == before + 3, "conversion, data set, training; inference is done here"
    assert training.weights()


def test_a_job_builds_no_requirement(cluster, shell):
    """What was there when it was handed in, and is not when it starts, is an error that says so."""
    dataset = ("--config", "offline_run3", "--dataset-version", "gone", "--filelist", shell.options["--filelist"])
    staged = shell.data_path / "ConvertNtuples/offline_run3/gone"
    cluster.run("scontrol", "update", "partitionname=main", "state=down")
    try:
        command = shell.start("DatasetConstructorTask", *dataset, "--slurm", "local-lab")
        wait_for(lambda: job_of(shell.data_path / "DatasetConstructorTask/offline_run3/gone"), 60, "a job")
        shutil.rmtree(staged)
    finally:
        cluster.run("scontrol", "update", "partitionname=main", "state=up")
    output, code = ended(command)
    assert code != 0
    assert "a job builds no requirement: type the command again" in output
    assert not staged.exists()


BAD_CARD = """#!/bin/bash
echo $SLURMD_NODENAME >> {seen}
[ -n "$SLURM_RESTART_COUNT" ] || exec {python} -c '
import os, signal, time
from bhive_mltf.slurm.batch_step import supervisor
signal.signal(signal.SIGTERM, lambda *_: None)
job = os.environ["SLURM_JOB_ID"]
nodes = supervisor._excluded_after(job, os.environ["SLURMD_NODENAME"])
assert supervisor._scontrol("requeue", job) is not None
supervisor._exclude(job, nodes)
time.sleep(60)
'
"""


def test_a_job_put_back_for_a_bad_card_runs_on_another_node(cluster, tmp_path):
    """As the supervisor does it, while SLURM ends the batch step."""
    seen, script = tmp_path / "seen", tmp_path / "job.sh"
    script.write_text(BAD_CARD.format(seen=seen, python=sys.executable))
    output = f"--output={tmp_path / 'job.log'}"
    job = cluster.run("sbatch", "--parsable", "--requeue", "--nodes=1", output, str(script)).stdout.strip()
    try:
        wait_for(lambda: seen.exists() and len(seen.read_text().splitlines()) == 2, 180)
    finally:
        cluster.run("scancel", job)
    first, second = seen.read_text().splitlines()
    assert first != second
