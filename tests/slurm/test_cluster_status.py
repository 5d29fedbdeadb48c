"""The run of a training whose node is lost, whatever the tracking server does meanwhile; a row of the status table.

The other rows are in `tests/tracking/test_status_table.py`.
"""

import signal

import pytest

from tests.helpers import slow_model as slow
from tests.helpers import tracking_server
from tests.helpers.slurm_trainings import ended, write_profile
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.long]
QUICK = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("mlflow")
    store = tmp_path_factory.mktemp("empty") / "mlflow.db"
    tracking_server.make_store(store)
    with tracking_server.running(tmp_path_factory.mktemp("server"), store) as address:
        yield address


@pytest.fixture
def begin(cluster, shell, server, tmp_path):
    """Starts a training on the first node, which takes minutes, with a server of some kind."""
    # the batch step of a job on the second node cannot start ranks in the lab
    node = {"options": {"nodelist": cluster.settings.nodes[0][0]}, "memory_per_cpu_gb": 1}
    profile = write_profile(tmp_path / "lost.yml", requeue=False, environment={slow.SECONDS: "5", **QUICK}, **node)
    model = "tests.helpers.slow_model:SlowDeepJet"
    options = {"epochs": 20, "nodes": 1, "ranks_per_node": 1, "checkpoint_steps": 1, "model_name": model}
    relays = []

    def begin(version, server_is):
        relays.append(relay := tracking_server.Relay(server))
        relay.become(server_is)
        training = shell.training(version, slurm=profile, **options)
        return relay, training, training.start(MLFLOW_TRACKING_URI=relay.address, **QUICK)

    yield begin
    for relay in relays:
        relay.shut()


def lose_the_node(cluster, *trainings):
    """The first node, on which these train."""
    cluster.lose_node(0)
    states = ("squeue", "-h", "--states=all", "-o", "%T", "-j", ",".join(one.job_id() for one in trainings))
    expected = ["NODE_FAIL"] * len(trainings)
    wait_for(lambda: cluster.run(*states).stdout.split() == expected, 120, "the controller to see it")


def assert_failed(server, training):
    from bhive_mltf.tracking.connection import connect
    from bhive_mltf.tracking.run_resolver import DIRECTORY_TAG

    client = connect(server)
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`{DIRECTORY_TAG}` = '{training.directory}'")
    assert [run.info.status for run in runs] == ["FAILED"]
    where = f"JobFailedError: job {training.job_id()} of {training.directory}"
    assert runs[0].data.tags["failure"].startswith(f"{where} ended as NODE_FAIL: one of its nodes failed")


def test_a_lost_node_fails_the_run(begin, cluster, shell, server):
    begun = {kind: begin(f"lost_{kind}", kind) for kind in tracking_server.SERVERS}
    for _, training, _ in begun.values():
        training.wait_for_step(1, 400)
    lose_the_node(cluster, *(training for _, training, _ in begun.values()))
    for relay, training, command in begun.values():
        output, code = ended(command)
        assert code != 0, output
        assert f"job {training.job_id()} of {training.directory} ended as NODE_FAIL: one of its nodes failed" in output
        relay.become("alive")
        synced = shell.cli("tracking", "sync", str(training.directory))
        assert synced.returncode == 0, synced.stdout
        assert_failed(server, training)


def test_sync_closes_the_run_that_a_lost_node_leaves(begin, cluster, shell, server):
    """Whose job nobody followed to its end."""
    _, training, command = begin("lost_alone", "alive")
    training.wait_for_step(1, 400)
    command.send_signal(signal.SIGKILL)
    command.communicate()
    running = shell.cli("tracking", "sync", str(training.directory))
    assert "closed" not in running.stdout, running.stdout
    lose_the_node(cluster, training)
    synced = shell.cli("tracking", "sync", str(training.directory))
    assert (synced.returncode, "the run was closed as FAILED" in synced.stdout) == (0, True), synced.stdout
    assert_failed(server, training)
