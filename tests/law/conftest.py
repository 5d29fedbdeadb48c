import pytest

from bhive_mltf.testing import jets
from tests.helpers import law_forks, sharing
from tests.helpers.commands import Sandbox


@pytest.fixture(scope="session")
def law_home(tmp_path_factory):
    """The index of the tasks."""

    def make(folder):
        sandbox = Sandbox(folder, folder)
        environment = {**sandbox.environment, "MLFLOW_DISABLE_TELEMETRY": "true", "MPLBACKEND": "agg"}
        (folder / "forks").write_text(law_forks.start_servers(environment, sharing.runner()))
        sandbox.forks = (folder / "forks").read_text()
        done = sandbox.law("index")
        assert "written 15 task(s)" in done.stdout, done.stdout

    return sharing.made_once(tmp_path_factory, "law", make)


@pytest.fixture(scope="session", autouse=True)
def servers_of_forks(law_home):
    """Servers for all commands, told to the sandboxes."""
    Sandbox.forks = (law_home / "forks").read_text()
    yield
    Sandbox.forks = None


@pytest.fixture
def sandbox(tmp_path, law_home):
    return Sandbox(tmp_path, law_home)


@pytest.fixture(scope="session")
def btag_lists(tmp_path_factory):
    """Lists of toy AK4 jets: `train.txt` (1200 jets in two files) and `test.txt` (400 jets in two files)."""

    def make(folder):
        for part, n_jets, seed in (("train", 600, 1), ("test", 200, 3)):
            paths = [
                jets.write_btag(folder / f"{part}_{process}.root", n_jets, seed + number, process=process)
                for number, process in enumerate(("TT", "QCD"))
            ]
            (folder / f"{part}.txt").write_text("".join(f"{path}\n" for path in paths))

    return sharing.made_once(tmp_path_factory, "ntuples", make)


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
