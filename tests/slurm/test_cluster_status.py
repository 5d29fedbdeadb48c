"""The run of a training whose node is lost, whatever the tracking server does meanwhile; a row of the status table.

The other rows are in `tests/tracking/test_status_table.py`.
"""

import signal
from types import SimpleNamespace

import pytest

from tests.helpers import slow_model as slow
from tests.helpers import tracking_server
from tests.helpers.slurm_trainings import ended, write_profile
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.long]
QUICK = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("mlflow")
    tracking_server.make_store(tmp_path / "empty.db")
    folder = tmp_path / "server"
    folder.mkdir()
    with tracking_server.running(folder, tmp_path / "empty.db") as address:
        yield address


@pytest.fixture
def lost(cluster, shell, server, tmp_path):
    """Trainings whose nodes are lost, each with a server of another kind; one on the second node is not followed."""
    names = [name for name, _ in cluster.settings.nodes]
    slow_steps = {"environment": {slow.SECONDS: "5", **QUICK}, "memory_per_cpu_gb": 1}
    profiles = [
        write_profile(tmp_path / f"on_{name}.yml", requeue=False, options={"nodelist": name}, **slow_steps)
        for name in names
    ]
    model = "tests.helpers.slow_model:SlowDeepJet"
    # long enough to be there when the last one has begun
    options = {"epochs": 20, "nodes": 1, "ranks_per_node": 1, "checkpoint_steps": 1, "model_name": model}
    found = {}
    for kind in (*tracking_server.SERVERS, "not followed"):
        relay = tracking_server.Relay(server)
        relay.become(kind)
        profile = profiles[kind == "not followed"]
        training = shell.training(f"lost_{kind}".replace(" ", "_"), slurm=profile, **options)
        command = training.start(MLFLOW_TRACKING_URI=relay.address, **QUICK)
        found[kind] = SimpleNamespace(relay=relay, training=training, command=command)
    for one in found.values():
        one.training.wait_for_step(1, 400)
    alone = found["not followed"].command
    alone.send_signal(signal.SIGKILL)
    alone.communicate()
    for number in range(len(names)):
        cluster.lose_node(number)
    yield found
    for one in found.values():
        one.relay.shut()


def test_a_lost_node_fails_the_run(lost, cluster, shell, server):
    from bhive_mltf.tracking.connection import connect
    from bhive_mltf.tracking.run_resolver import DIRECTORY_TAG

    wait_for(
        lambda: cluster.run("squeue", "-h", "--states=all", "-o", "%T").stdout.split().count("NODE_FAIL") >= len(lost),
        120,
        "the controller to see that the node is lost",
    )
    client = connect(server)
    experiments = [one.experiment_id for one in client.search_experiments()]
    for kind, one in lost.items():
        job = one.training.job_id()
        if kind != "not followed":
            output, code = ended(one.command)
            assert code != 0, (kind, output)
            assert f"job {job} of {one.training.directory} ended as NODE_FAIL: one of its nodes failed" in output
        one.relay.become("alive")
        synced = shell.cli("tracking", "sync", str(one.training.directory))
        assert synced.returncode == 0, (kind, synced.stdout)
        assert kind != "not followed" or "the run was closed as FAILED" in synced.stdout, synced.stdout
        runs = client.search_runs(experiments, f"tags.`{DIRECTORY_TAG}` = '{one.training.directory}'")
        assert [run.info.status for run in runs] == ["FAILED"], kind
        expected = f"JobFailedError: job {job} of {one.training.directory} ended as NODE_FAIL: one of its nodes failed"
        assert runs[0].data.tags["failure"].startswith(expected), kind
