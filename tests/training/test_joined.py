"""Ranks in places that torchrun, or something like it, has started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bhive_mltf.errors import ParameterError
from bhive_mltf.ranks.joined import Place
from tests.helpers import ports
from tests.helpers.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
PLACE = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "4711"}
# leads: starts ranks twice, each a small program
LEADER = """
import sys
from pathlib import Path
from bhive_mltf.errors import RankFailedError
from bhive_mltf.ranks.joined import JoinedRanks, Place
from bhive_mltf.ranks.launcher import LaunchRequest
from bhive_mltf.ranks.signals import TrainingInterruptedError
assert "RANK" not in __import__("os").environ
folder = Path(sys.argv[1])
ranks = JoinedRanks(Place.of_leader(), [sys.executable, str(folder / "rank.py")])
for number in range(2):
    try:
        ranks.launch(LaunchRequest(folder, folder / f"plan_{number}", 1))
    except TrainingInterruptedError as error:
        sys.exit(f"stopped: {error}")
    except RankFailedError as error:
        sys.exit(f"failed: {error}")
"""
REPORTING = """
import os, sys
from pathlib import Path
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
Path(f"{sys.argv[1]}.{os.environ['RANK']}").write_text(" ".join(os.environ[name] for name in names))
"""
WAITING = """
import os, signal, sys, time
from pathlib import Path
def stop(*_):
    sys.exit(75)
signal.signal(signal.SIGUSR2, stop)
Path(f"{sys.argv[1]}.{os.environ['RANK']}").touch()
time.sleep(60)
"""
FAILING = """
import os, sys, time
if os.environ["RANK"] == "1":
    sys.exit("this rank has had enough")
time.sleep(60)
"""


class Places:
    """Two places on this machine that run the same `bhive-mltf join`."""

    def __init__(self, folder, rank, port):
        (folder / "rank.py").write_text(rank)
        (folder / "lead.py").write_text(LEADER)
        command = [sys.executable, "-c", "import sys; from bhive_mltf.cli import main; sys.exit(main())"]
        command += ["join", sys.executable, str(folder / "lead.py"), str(folder)]
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(REPOSITORY)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    def end(self):
        """Exit codes, and what the leading place said."""
        said = [process.communicate(timeout=90)[1] for process in self.processes]
        return [process.returncode for process in self.processes], said[0]


@pytest.fixture
def places(tmp_path, free_port):
    made = []

    def make(rank):
        made.append(Places(tmp_path, rank, free_port))
        return made[0]

    yield make
    for process in made[0].processes:
        process.kill()
        process.communicate()


@pytest.fixture
def free_port():
    return ports.free_port()


def test_place_is_that_of_torchrun():
    place = Place.of({**PLACE, "MASTER_ADDR": "n1"})
    assert (place.rank, place.size, place.local_rank, place.nodes, place.port) == (3, 4, 1, 2, 4711)
    assert place.hosts_store
    assert not Place.of({**PLACE, "MASTER_ADDR": "n1", "TORCHELASTIC_USE_AGENT_STORE": "True"}).hosts_store


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"RANK": ""}, "RANK, MASTER_ADDR not set: start"), ({"RANK": "first", "MASTER_ADDR": "n"}, "is no number")],
)
def test_no_place_is_one_sentence(changes, message):
    with pytest.raises(ParameterError, match=message):
        Place.of({**PLACE, **changes})


@pytest.mark.long
def test_one_command_leads_and_all_places_run_ranks_twice(places, tmp_path):
    assert places(REPORTING).end() == ([0, 0], "")
    found = [(tmp_path / f"plan_{start}.{rank}").read_text() for start in range(2) for rank in range(2)]
    assert found == ["0 2 0 1", "1 2 1 1", "0 2 0 2", "1 2 1 2"]


@pytest.mark.long
def test_warned_ranks_give_75_in_all_places(places, tmp_path):
    made = places(WAITING)
    wait_for(lambda: (tmp_path / "plan_0.0").exists() and (tmp_path / "plan_0.1").exists(), 60)
    for process in made.processes:
        process.send_signal(signal.SIGUSR2)
    codes, said = made.end()
    assert codes == [75, 75]
    assert "stopped: The training in" in said


@pytest.mark.long
def test_failing_rank_ends_all_and_is_named(places):
    begun = time.monotonic()
    codes, said = places(FAILING).end()
    assert codes == [1, 1]
    assert "Rank 1 of 2 failed (exit code 1)" in said
    assert "this rank has had enough" in said
    assert time.monotonic() - begun < 80


@pytest.mark.long
def test_torchrun_trains_as_ranks_of_this_machine_do(tmp_path):
    """The same weights, bit for bit, as `--ranks-per-node 2`."""
    options = ["--config", "offline_run3", "--model-name", "DeepJet", "--dataset-version", "v1", "--epochs", "1"]
    options += ["--filelist", str(REPOSITORY / "examples" / "btag_sample" / "test.txt"), "--batch-size", "128"]
    options += ["--n-threads", "0", "--TrainingTask-loss-weighting", "True", "--tracking", "False"]
    law = [str(Path(sys.executable).parent / "law"), "run", "bhive_mltf.law.tasks.training.TrainingTask", *options]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    join = [sys.executable, "-c", "import sys; from bhive_mltf.cli import main; sys.exit(main())", "join"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DATA_PATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    (tmp_path / "law.cfg").write_text("[modules]\nbhive_mltf.law.tasks\n")
    environment |= {"LAW_CONFIG_FILE": str(tmp_path / "law.cfg"), "LAW_HOME": str(tmp_path / ".law")}
    commands = {
        "joined": [*torchrun, *join, *law, "--training-version", "joined"],
        "local": [*law, "--training-version", "local", "--ranks-per-node", "2"],
    }
    import torch

    weights = {}
    for name, command in commands.items():
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = tmp_path.rglob(f"TrainingTask/*/*/{name}/**/best_model.pt")
        weights[name] = torch.load(path, weights_only=True)["model_state_dict"]
        plan = json.loads((path.parent / "plan.json").read_text())
        assert (plan["nodes"], plan["ranks_per_node"]) == (1, 2)
    assert all(torch.equal(value, weights["local"][name]) for name, value in weights["joined"].items())
