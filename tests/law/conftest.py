import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bhive_mltf.testing import jets
from tests.helpers.commands import REPOSITORY, Sandbox


@pytest.fixture(scope="session", autouse=True)
def server_of_forks():
    """One server for all commands, told to the sandboxes."""
    with tempfile.TemporaryDirectory() as folder:
        address = Path(folder, "socket")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.law_forks", address],
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
    assert "written 15 task(s)" in done.stdout, done.stdout
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
