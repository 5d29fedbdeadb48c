"""Trainings as jobs on the real cluster: the same weights whatever happens to the job, and a true run."""

import signal

import pytest

from bhive_mltf.testing import jets
from tests.slurm.trainings import Shell, assert_finished, assert_same_weights, ended, wait_for

pytestmark = pytest.mark.slurm
TWICE_TWO = {"slurm": "local-lab", "nodes": 2, "ranks_per_node": 2}
# two ranks on two nodes: cheap, and still several nodes
TWO = {"slurm": "local-lab", "nodes": 2, "ranks_per_node": 1, "checkpoint_steps": 2}


@pytest.fixture(scope="module")
def shell(tmp_path_factory, lab_of_the_session):
    """A shell with a training set; each test trains a version of its own on it."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "law").mkdir()
    paths = [jets.write_btag(folder / f"{p}.root", 300, seed, process=p) for seed, p in enumerate(("TT", "QCD"))]
    (folder / "train.txt").write_text("".join(f"{path}\n" for path in paths))
    made = Shell(folder, folder / "law", lab_of_the_session, folder / "train.txt")
    assert made.law("index").returncode == 0
    names = ("--config", "--dataset-version", "--filelist")
    made.run("DatasetConstructorTask", *(part for name in names for part in (name, made.options[name])))
    return made


@pytest.fixture(scope="module")
def four_local(shell):
    training = shell.training("local4", ranks_per_node=4, tracking=False)
    done = training.run()
    assert done.returncode == 0, done.stdout
    return training


@pytest.fixture(scope="module")
def two_local(shell):
    training = shell.training("local2", ranks_per_node=2, tracking=False)
    done = training.run()
    assert done.returncode == 0, done.stdout
    return training


def test_two_nodes_of_two_ranks_equal_four_local_ranks(cluster, shell, four_local):
    training = shell.training("four", **TWICE_TWO)
    before = cluster.submissions()
    done = training.run()
    assert done.returncode == 0, done.stdout
    assert_same_weights(four_local, training)
    assert_finished(training, attempts=1)
    assert (training.directory / "loss.png").exists()
    assert cluster.submissions() == before + 1


def test_warned_three_times_it_ends_with_the_same_weights_in_the_same_run(cluster, shell, four_local):
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
    assert cluster.submissions() == before + 1


def test_a_killed_rank_and_a_lost_node_go_on_from_the_last_checkpoint(cluster, shell, two_local):
    training = shell.training("broken", **TWO)
    before = cluster.submissions()
    command = training.start()
    training.attempt_steps(1)
    training.wait_for_step(4)
    cluster.run("scancel", "--signal=KILL", f"{training.job_id()}.1")
    training.wait_for_attempt(2)
    assert training.attempts()[0].outcome == "broken"
    assert "SIGKILL" in training.attempts()[0].reason
    training.attempt_steps(2)
    cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    training.wait_for_attempt(3)
    output, code = ended(command)
    assert code == 0, output
    assert_same_weights(two_local, training)
    assert_finished(training, attempts=3)
    assert cluster.submissions() == before + 1


def test_cancelled_while_it_waits_and_while_it_runs(cluster, shell):
    training = shell.training("cancelled", **TWO)
    cluster.run("scontrol", "update", "partitionname=main", "state=down")
    try:
        command = training.start()
        first = training.job_id()
        run, _, _ = training.mlflow_run()
        assert run.info.status == "SCHEDULED"
        cluster.run("scancel", first)
        output, code = ended(command)
    finally:
        cluster.run("scontrol", "update", "partitionname=main", "state=up")
    assert code != 0
    assert "it was cancelled" in output
    run, _, _ = training.mlflow_run()
    assert run.info.status == "KILLED"

    command = training.start()
    wait_for(lambda: training.job_id() != first, 60, "another job")
    training.attempt_steps(1)
    wait_for(lambda: training.mlflow_run()[0].info.status == "RUNNING", 60, "a run that runs")
    cluster.run("scancel", training.job_id())
    output, code = ended(command)
    assert code != 0
    assert "it was cancelled" in output
    run, runs, _ = training.mlflow_run()
    assert (run.info.status, runs) == ("KILLED", 1)
    assert list((training.directory / "checkpoints").glob("step_*.pt")), "no work is lost"


def test_one_job_for_two_login_nodes_a_killed_command_and_a_scheduler_that_restarts(
    cluster, shell, two_local, tmp_path
):
    training = shell.training("one", **TWO)
    before = cluster.submissions()
    hosts = [["unshare", "--uts", "bash", "-c", f'hostname login{n}; exec "$@"', "bash"] for n in (1, 2)]
    commands = [training.start(*host) for host in hosts]
    training.attempt_steps(1)
    commands[0].send_signal(signal.SIGKILL)
    commands[0].communicate()
    cluster.kill_controller()
    cluster.start_controller()
    output, code = ended(training.start())
    assert code == 0, output
    output, code = ended(commands[1])
    assert code == 0, output
    assert_same_weights(two_local, training)
    assert_finished(training, attempts=1)
    assert cluster.submissions() == before + 1
