import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bhive_mltf.testing import jets
from tests.law import forks

TIMEOUT = 600  # s, for one command
# A folder with another version of law, see `make test-law`.
OTHER_LAW = os.environ.get("BHIVE_TEST_LAW")
REPOSITORY = Path(__file__).parents[2]


class Sandbox:
    """A shell as a user has it after `source setup.sh`, with a folder of its own for outputs.

    forks : socket of the server of `forks.py`; without one each command is a process from the start.
    """

    forks = None

    def __init__(self, folder, law_home):
        self.folder = folder
        self.data_path = folder / "output"
        self.data_path.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "LAW_", "BHIVE_"))},
            "DATA_PATH": str(self.data_path),
            "LAW_HOME": str(law_home),
            "LAW_CONFIG_FILE": str(REPOSITORY / "law.cfg"),
            "B_HIVE_DIR": str(REPOSITORY),
            "PYTHONPATH": os.pathsep.join([*filter(None, [OTHER_LAW]), str(REPOSITORY)]),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",
        }

    def command(self, *arguments):
        return [str(Path(sys.executable).with_name("law")), *map(str, arguments)]

    def law(self, *arguments, **environment):
        """Run a law command; its output (both streams) and exit code."""
        command, environment = self.command(*arguments), {**self.environment, **environment}
        if self.forks is None:
            return subprocess.run(
                command,
                env=environment,
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        with tempfile.TemporaryFile("w+") as output:
            code = forks.run(self.forks, command, environment, self.folder, output.fileno(), TIMEOUT)
            output.seek(0)
            return subprocess.CompletedProcess(command, code, output.read())

    def run(self, *arguments, **environment):
        """Run a task that must succeed; its output."""
        done = self.law("run", *arguments, **environment)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, *arguments):
        """Start a task in a process group of its own."""
        return subprocess.Popen(
            self.command("run", *arguments),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(scope="session", autouse=True)
def server_of_forks():
    """One server for all commands, told to the sandboxes."""
    with tempfile.TemporaryDirectory() as folder:
        address = Path(folder, "socket")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.law.forks", address],
            cwd=REPOSITORY,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        )
        try:
            while not address.exists():
                assert process.poll() is None, "the server of forks has ended"
                time.sleep(0.1)
            Sandbox.forks = address
            yield
        finally:
            Sandbox.forks = None
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def law_home(tmp_path_factory):
    """The index of the tasks."""
    home = tmp_path_factory.mktemp("law")
    sandbox = Sandbox(tmp_path_factory.mktemp("index"), home)
    done = sandbox.law("index")
    assert "written 13 task(s)" in done.stdout, done.stdout
    return home


@pytest.fixture
def sandbox(tmp_path, law_home):
    return Sandbox(tmp_path, law_home)


@pytest.fixture(scope="session")
def btag_lists(tmp_path_factory):
    """Lists of toy AK4 jets: `train.txt` (1200 jets in two files) and `test.txt` (400 jets in two files)."""
    folder = tmp_path_factory.mktemp("ntuples")
    for part, n_jets, seed in (("train", 600, 1), ("test", 200, 3)):
        paths = [
            jets.write_btag(folder / f"{part}_{process}.root", n_jets, seed + number, process=process)
            for number, process in enumerate(("TT", "QCD"))
        ]
        (folder / f"{part}.txt").write_text("".join(f"{path}\n" for path in paths))
    return folder


@pytest.fixture(scope="session")
def btag_options(btag_lists):
    """A short DeepJet training on the toy jets, and its evaluation."""
    return {
        "--config": "offline_run3",
        "--model-name": "DeepJet",
        "--dataset-version": "v1",
        "--filelist": btag_lists / "train.txt",
        "--training-version": "t1",
        "--epochs": 2,
        "--batch-size": 128,
        "--n-threads": 0,
    }


@pytest.fixture(scope="session")
def test_options(btag_lists):
    return {"--test-dataset-version": "v1_test", "--test-filelist": btag_lists / "test.txt"}


def flat(*options):
    """Options as they are typed."""
    return [part for one in options for item in one.items() for part in item]
