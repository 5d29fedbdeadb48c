"""Trainings as jobs on the real cluster: the same weights whatever happens to the job, and a true run."""

import signal

import pytest

from bhive_mltf.slurm.states import JobState
from tests.helpers.slurm_trainings import (
    TWO,
    assert_finished,
    assert_same_weights,
    assert_system_series,
    ended,
    read_until,
    write_profile,
)
from tests.helpers.waiting import wait_for

pytestmark = pytest.mark.slurm
TWICE_TWO = {"slurm": "local-lab", "nodes": 2, "ranks_per_node": 2, "checkpoint_steps": 1}


@pytest.fixture(scope="module")
def four_local(shell):
    return shell.local("local4", 4)


def test_two_nodes_of_two_ranks_equal_four_local_ranks(cluster, shell, four_local, tmp_path):
    """Reading copies of the training set on each node's own disk, which are removed in the end."""
    disks = tmp_path / "disks"
    (disks / "n1/bhive_7").mkdir(parents=True)
    profile = write_profile(tmp_path / "local_disks.yml", staging=f"{disks}/$SLURMD_NODENAME")
    training = shell.training("four", **{**TWICE_TWO, "slurm": profile})
    before = cluster.submissions()
    done = training.run()
    assert done.returncode == 0, done.stdout
    assert_same_weights(four_local, training)
    assert_finished(training, attempts=1)
    assert (training.directory / "loss.png").exists()
    for rank, node in enumerate(("n1", "n1", "n2", "n2")):
        assert f"from its copy in {disks}/{node}/bhive_" in (training.directory / f"logs/rank_{rank}.log").read_text()
        assert list((disks / node).iterdir()) == [], "what a lost job left is gone too"
    assert cluster.submissions() == before + 1


def test_warned_three_times_it_ends_with_the_same_weights(cluster, shell, four_local):
    training = shell.training("warned", **TWICE_TWO)
    before = cluster.submissions()
    command = training.start()
    for attempt in (1, 2, 3):
        training.attempt_steps(attempt)
        cluster.run("scancel", "--signal=USR2", training.job_id())
        training.wait_for_attempt(attempt + 1)
    output, code = ended(command)
    assert code == 0, output
    assert_same_weights(four_local, training)
    assert_finished(training, attempts=4)
    assert [a.outcome for a in training.attempts()] == ["stopped", "stopped", "stopped", "done"]
    assert_system_series(training, "n2", attempts=4)
    assert cluster.submissions() == before + 1


def test_killed_rank_lost_node_preemption_go_on_from_checkpoint(cluster, shell, two_local):
    training = shell.training("broken", **TWO)
    before = cluster.submissions()
    command = training.start()
    training.attempt_steps(1)
    cluster.run("scancel", "--signal=KILL", f"{training.job_id()}.1")
    training.wait_for_attempt(2)
    assert training.attempts()[0].outcome == "broken"
    assert "SIGKILL" in training.attempts()[0].reason
    training.attempt_steps(2)
    cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    training.wait_for_attempt(3)
    training.attempt_steps(3)
    options = ("--partition=urgent", "--exclusive", "--nodes=2", "--output=/dev/null")
    urgent = cluster.run("sbatch", *options, "--wrap=sleep 1")
    assert urgent.returncode == 0, urgent.stderr
    training.wait_for_attempt(4)
    output, code = ended(command)
    assert code == 0, output
    for attempt in (2, 3, 4):
        assert f"attempt {attempt}" in output
    assert_same_weights(two_local, training)
    assert_finished(training, attempts=4)
    assert cluster.submissions() == before + 2, "the training, and the one that took its nodes"


def test_no_work_is_lost_when_cancelled_or_failing_at_the_start(cluster, shell, two_local, tmp_path):
    training = shell.training("cancelled", **TWO)
    before = cluster.submissions()
    cluster.run("scontrol", "update", "partitionname=main", "state=down")
    try:
        command = training.start()
        first = training.job_id()
        run, _, _ = training.mlflow_run()
        assert run.info.status == "SCHEDULED"
        cluster.run("scancel", first)
        output, code = ended(command)
        assert code != 0
        assert f"job {first} of {training.directory} ended as CANCELLED: it was cancelled" in output
        run, _, _ = training.mlflow_run()
        assert run.info.status == "KILLED"
        reason = f"JobFailedError: job {first} of {training.directory} ended as CANCELLED: it was cancelled"
        assert run.data.tags["failure"].startswith(reason)
        assert training.record().state is JobState.CANCELLED

        # nobody follows the next one
        command = training.start()
        second = wait_for(lambda: (job := training.job_id()) != first and job, 60, "another job")
        command.send_signal(signal.SIGKILL)
        command.communicate()
        assert training.mlflow_run()[0].info.status == "SCHEDULED"
        cancelled = shell.cli("slurm", "cancel", second)
        assert cancelled.stdout == f"job {second}: CANCELLED\n"
        assert training.mlflow_run()[0].info.status == "KILLED"
    finally:
        cluster.run("scontrol", "update", "partitionname=main", "state=up")

    command = training.start()
    wait_for(lambda: training.job_id() != second, 60, "another job")
    training.attempt_steps(1)
    wait_for(lambda: training.mlflow_run()[0].info.status == "RUNNING", 60, "a run that runs")
    cluster.run("scancel", training.job_id())
    output, code = ended(command)
    assert code != 0
    assert "ended as CANCELLED: it was cancelled" in output
    run, runs, _ = training.mlflow_run()
    assert (run.info.status, runs) == ("KILLED", 1)
    assert training.record().state is JobState.CANCELLED

    profile = write_profile(tmp_path / "broken.yml", setup=["echo the module system is down", "exit 3"])
    broken = shell.training("cancelled", **{**TWO, "slurm": profile})
    done = broken.run()
    assert done.returncode != 0
    assert "ended as FAILED: it failed with exit code 3" in done.stdout
    assert "    the module system is down" in done.stdout
    run, runs, _ = training.mlflow_run()
    assert (run.info.status, runs) == ("FAILED", 1)
    assert "ended as FAILED: it failed with exit code 3" in run.data.tags["failure"]
    assert training.record().state is JobState.FAILED

    done = training.run()
    assert done.returncode == 0, done.stdout
    assert_same_weights(two_local, training)
    run, runs, values = training.mlflow_run()
    assert (run.info.status, runs, values, run.data.tags["failure"]) == ("FINISHED", 1, 1, "")
    assert [job.state.name for job in training.record().attempts] == ["CANCELLED"] * 3 + ["FAILED"]
    assert training.record().state is JobState.COMPLETED
    assert len(training.beginnings()) == 1, "what was trained before it was cancelled is not trained again"
    assert cluster.submissions() == before + 5


def test_one_job_whatever_happens_to_commands_and_scheduler(cluster, shell, two_local):
    training = shell.training("one", **TWO)
    before = cluster.submissions()
    hosts = [["unshare", "--uts", "bash", "-c", f'hostname login{n}; exec "$@"', "bash"] for n in (1, 2)]
    commands = [training.start(*host) for host in hosts]
    training.attempt_steps(1)
    commands[0].send_signal(signal.SIGKILL)
    commands[0].communicate()
    cluster.kill_controller(after_saving=training.record().job_id)
    read_until(commands[1], "the job may go on, asking again")
    third = training.start()
    cluster.start_controller()
    output, code = ended(third)
    assert code == 0, output
    output, code = ended(commands[1])
    assert code == 0, output
    assert "the scheduler answers again" in output
    assert_same_weights(two_local, training)
    assert_finished(training, attempts=1)
    assert cluster.submissions() == before + 1
