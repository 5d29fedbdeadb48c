"""How a run ends, whatever ended its training, and whatever the tracking server does meanwhile.

Time limit and `scancel` are here the signals that a rank of a job gets; real ones are in `tests/slurm`, where
`test_cluster_status.py` has the row of this table that needs a cluster, a lost node.
"""

import multiprocessing
from types import SimpleNamespace

import pytest

from bhive_mltf.cli import main
from bhive_mltf.tracking.connection import connect
from bhive_mltf.tracking.run_resolver import DIRECTORY_TAG
from bhive_mltf.training.checkpointing.checkpoint import read_checkpoint
from tests.helpers.tracking_server import SERVERS

pytestmark = pytest.mark.long

# status, and what the tag `failure` says
TABLE = {
    "SIGKILL": ("KILLED", "its processes are gone without a word"),
    "SIGTERM": ("KILLED", "TrainingInterruptedError: "),
    "sys.exit": ("FAILED", "SystemExit: 3"),
    "exception in rank 1": ("FAILED", "RankFailedError: Rank 1 of 2 failed"),
    "out of memory": ("FAILED", "RankFailedError: Rank 1 of 2 failed (it was killed by SIGKILL"),
    "full disk": ("FAILED", "DiskError: "),
    "scancel": ("KILLED", "TrainingInterruptedError: "),
    "time limit": ("SCHEDULED", "TrainingInterruptedError: "),
}
# a stopped server costs what one request may take, a few times
LONGEST = 90.0  # s


@pytest.fixture(scope="module")
def forks():
    """Starts processes that have imported what takes seconds."""
    pytest.importorskip("mlflow")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.tracked_training"])
    return context


def trained(forks, relay, directory, end, tracking=True):
    """A training in a process of its own; its exit code, and what it said."""
    from tests.helpers import tracked_training

    environment = {"MLFLOW_TRACKING_URI": relay.address, "DATA_PATH": str(directory.parent)}
    environment |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    directory.mkdir()
    process = forks.Process(target=tracked_training.main, args=(str(directory), end, environment, tracking))
    process.start()
    process.join(LONGEST)
    said = (directory / "output").read_text()
    if process.is_alive():
        process.kill()
        pytest.fail(f"it still runs after {LONGEST} s: {said}")
    return process.exitcode, said


@pytest.fixture(scope="module")
def untracked(forks, tmp_path_factory):
    """The bytes of each tensor of a training without tracking."""
    directory = tmp_path_factory.mktemp("untracked") / "training"
    code, said = trained(forks, SimpleNamespace(address=""), directory, "none", tracking=False)
    assert code == 0, said
    assert not (directory / "run.json").exists()
    return weights(directory)


def weights(directory):
    state = read_checkpoint(directory / "model_1.pt")["model_state_dict"]
    return {name: value.numpy().tobytes() for name, value in state.items()}


@pytest.mark.parametrize("server_is", SERVERS)
def test_tracking_changes_no_bit(forks, relay, untracked, tmp_path, server_is):
    relay.become(server_is)
    code, said = trained(forks, relay, tmp_path / "training", "none")
    assert code == 0, said
    assert (tmp_path / "training" / "run.json").exists()
    assert weights(tmp_path / "training") == untracked


@pytest.mark.parametrize("server_is", SERVERS)
@pytest.mark.parametrize("end", TABLE)
def test_the_status_is_true(forks, relay, server, tmp_path, capsys, end, server_is):
    directory = tmp_path / "training"
    relay.become(server_is)
    code, said = trained(forks, relay, directory, end)
    assert code != 0, said
    relay.become("alive")
    assert main(["tracking", "sync", str(directory)]) == 0, (capsys.readouterr(), said)
    client = connect(server)
    found = client.search_runs(
        [one.experiment_id for one in client.search_experiments()], f"tags.`{DIRECTORY_TAG}` = '{directory}'"
    )
    status, reason = TABLE[end]
    assert [run.info.status for run in found] == [status], said
    assert found[0].data.tags["failure"].startswith(reason), said
