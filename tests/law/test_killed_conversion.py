"""The typed command killed while it makes a training set: typed again, it repeats unfinished branches only."""

import os
import signal
import time

import pytest

from bhive_mltf.testing import jets
from tests.helpers.commands import flat

N_FILES = 6
TASK = "DatasetConstructorTask"


@pytest.fixture(scope="module")
def filelist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ntuples")
    paths = [
        jets.write_btag(folder / f"{process}_{n}.root", 4000, n, process=process)
        for n, process in enumerate(("TT", "QCD") * (N_FILES // 2))
    ]
    (folder / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    return folder / "list.txt"


def staged(sandbox):
    """Finished branches, and which file each of them is."""
    found = sandbox.data_path.glob("ConvertNtuples/**/[!.]*.arrow")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def wait_for(number, sandbox, command):
    """Until so many branches are finished; looks often, so that what comes after has hardly begun."""
    end = time.monotonic() + 60
    while len(staged(sandbox)) < number:
        assert command.poll() is None, command.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.002)


def contents(sandbox, version):
    directory = sandbox.data_path / TASK / "offline_run3" / version
    names = ["histogram.npy", "weights.json", "weighting.json", "index.npy", "manifest.json"]
    return {p.name: p.read_bytes() for p in [*directory.glob("file_*.arrow"), *(directory / name for name in names)]}


@pytest.mark.long
def test_w07_a_killed_command_repeats_unfinished_branches_only(sandbox, filelist):
    options = [*flat({"--config": "offline_run3", "--filelist": filelist, "--chunk-size": 5000})]
    sandbox.run(TASK, *options, "--dataset-version", "whole")
    assert staged(sandbox) == {}, "staged files go when the set is there"

    finished = {}
    for wanted in (1, 3, N_FILES):
        command = sandbox.start(TASK, *options, "--dataset-version", "cut")
        try:
            wait_for(wanted, sandbox, command)
            os.killpg(command.pid, signal.SIGKILL)
        finally:
            command.kill()
            command.communicate()
        now = staged(sandbox)
        assert len(now) >= wanted
        assert {name: now[name] for name in finished} == finished, "a finished branch was converted again"
        finished = now
        assert not (sandbox.data_path / TASK / "offline_run3/cut/processed_files.txt").exists()

    # All branches are there: what comes now constructs, and converts nothing.
    output = sandbox.run(TASK, *options, "--dataset-version", "cut", "--coffea-worker", 2)
    assert "6 complete ones" in output or "ran successfully" in output
    assert contents(sandbox, "cut") == contents(sandbox, "whole")
