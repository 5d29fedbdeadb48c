"""A conversion that is killed, or runs out of disk: nothing that looks complete, and the same bytes the second time."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bhive_mltf.data.build.construct import construct
from bhive_mltf.data.build.stage import stage, stage_many
from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.data.ntuples.jobs import ReadOptions, StageJob
from bhive_mltf.errors import DataError
from bhive_mltf.testing.root_files import write_tree
from tests.helpers.building import hand_made, small_config

N_FILES = 12

# What the tasks do: convert what is not there yet, then construct.
COMMAND = """
import sys
from pathlib import Path
from bhive_mltf import config as configs
from bhive_mltf.data.build.construct import construct
from bhive_mltf.data.ntuples.jobs import ReadOptions, StageJob
from bhive_mltf.data.build.stage import stage_many

folder, place, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
config = configs.load(str(folder / "small.yml"))
files = sorted(map(str, folder.glob("*.root")))
options = ReadOptions(max_jets=40)
jobs = [StageJob(config, (f,), place / "staged" / f"{Path(f).stem}.jets", 1, False, options) for f in files]
if __name__ == "__main__":
    stage_many([job for job in jobs if not job.target.exists()], workers)
    construct(config, [job.target for job in jobs], place / "set", chunk_size=150, seed=1, filelist=files)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    config = small_config(folder)
    for i in range(N_FILES):
        process = ("TT", "QCD")[i % 2]
        write_tree(folder / f"{process}_{i:02}.root", config.treename, hand_made(400 + i), basket_jets=50)
    (folder / "command.py").write_text(COMMAND)
    return folder, config


def start(folder, place, workers):
    command = [sys.executable, folder / "command.py", folder, place, str(workers)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, env=environment)


def contents(place):
    found = {path.name: path.read_bytes() for path in (place / "set").iterdir()}
    found["processed_files.txt"] = found["processed_files.txt"].replace(str(place).encode(), b"")
    return found


def staged(place):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (place / "staged").glob("[!.]*.jets")}


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    folder, _ = inputs
    place = tmp_path_factory.mktemp("undisturbed")
    process = start(folder, place, 1)
    assert process.wait(120) == 0, process.stderr.read()
    process.stderr.close()
    return contents(place)


@pytest.mark.long
@pytest.mark.parametrize(("seed", "workers"), [(3, 2), (1, 1), (2, 1), (4, 1)])
def test_killed_at_any_moment(inputs, undisturbed, tmp_path, seed, workers):
    folder, config = inputs
    rng = random.Random(seed)
    finished = {}
    for attempt in range(3):
        process = start(folder, tmp_path, workers)
        # The last attempt is killed while it constructs.
        wanted = N_FILES if attempt == 2 else min(N_FILES, len(finished) + rng.randrange(1, 5))
        while process.poll() is None and len(list((tmp_path / "staged").glob("[!.]*.jets"))) < wanted:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
        now = staged(tmp_path)
        assert {name: now[name] for name in finished} == finished, "a finished file was made again"
        finished = now
        if not (tmp_path / "set" / "processed_files.txt").exists() and (tmp_path / "set").exists():
            with pytest.raises(DataError, match="no complete training set"):
                open_dataset(tmp_path / "set", config)
    process = start(folder, tmp_path, workers)
    assert process.wait(120) == 0, process.stderr.read()
    process.stderr.close()
    now = staged(tmp_path)
    assert {name: now[name] for name in finished} == finished, "a finished file was made again"
    assert contents(tmp_path) == undisturbed
    # a kill behind the last rename leaves the empty lock of a finished file, which goes with its folder
    left = [path for path in (tmp_path / "staged").glob(".*") if path.suffix != ".lock" or path.stat().st_size]
    assert not left, "something was left over"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of half a megabyte."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk takes root")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def jobs_of(inputs, place, n_files=N_FILES):
    folder, config = inputs
    files = sorted(map(str, folder.glob("*.root")))[:n_files]
    return [
        StageJob(config, (f,), place / f"{i}.jets", 1, False, ReadOptions(max_jets=40)) for i, f in enumerate(files)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_disk_full_while_staging(inputs, small_disk, workers):
    jobs = jobs_of(inputs, small_disk)
    (small_disk / "ballast").write_bytes(bytes(400_000))
    message = r"'.*disk/\d+.jets' cannot be written \(the disk is full\): make room .* MB are free there"
    with pytest.raises(DataError, match=message):
        stage_many(jobs, workers)
    left = {path.name for path in small_disk.iterdir()}
    assert any(name.endswith(".jets") for name in left), "what was whole stays"
    assert not [name for name in left if name.endswith(".tmp")]
    assert len(left) < N_FILES
    (small_disk / "ballast").unlink()
    missing = [job for job in jobs if not job.target.exists()]
    stage(missing[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_disk_full_while_constructing(inputs, small_disk, tmp_path, threads):
    _, config = inputs
    jobs = jobs_of(inputs, tmp_path)
    stage_many(jobs)
    (small_disk / "ballast").write_bytes(bytes(300_000))
    arguments = {"chunk_size": 500, "seed": 1, "filelist": [path for job in jobs for path in job.paths]}
    with pytest.raises(
        DataError, match=r"disk/set.*' cannot be written \(the disk is full\): make room .* MB are free there"
    ):
        construct(config, [job.target for job in jobs], small_disk / "set", threads=threads, **arguments)
    assert not (small_disk / "set" / "processed_files.txt").exists()
    with pytest.raises(DataError, match="no complete training set"):
        open_dataset(small_disk / "set", config)
    assert all(job.target.exists() for job in jobs)
