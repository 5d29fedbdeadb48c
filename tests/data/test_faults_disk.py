"""Disks that are full or read-only, and processes that are killed: a clear error, then the right set."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bhive_mltf.data.build.construct import construct
from bhive_mltf.data.build.stage import stage
from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.data.ntuples.jobs import StageJob
from bhive_mltf.errors import DataError
from bhive_mltf.testing.jets import write_btag
from tests.helpers.building import build, small_config

LAYOUTS = ["ArrowDataset", "LZ4Dataset"]

# Runs in a process of its own: mounts, or dies.
CHILD = """
import json, subprocess, sys
from pathlib import Path
from bhive_mltf import config as configs
from bhive_mltf.data.build import construct as construction
from bhive_mltf.data.ntuples.jobs import StageJob
from bhive_mltf.data.ntuples.root_dataset import open_root
from bhive_mltf.data.build.stage import stage
from bhive_mltf.errors import BhiveError

action, source, folder, path, half = sys.argv[1:6]
config, folder = configs.load(source), Path(folder)
staged, directory = folder / "staged" / "0.arrow", folder / "set"

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)

def remount(options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

def convert():
    stage(StageJob(config, (path,), staged, 1))

def construct():
    return construction.construct(config, [staged], directory, chunk_size=500, seed=1, filelist=[path],
                                  code_version="0")

def attempt(call):
    try:
        call()
    except BhiveError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error), "left": sorted(
            str(p.relative_to(folder)) for p in folder.glob("**/*") if p.is_file())}), flush=True)
    else:
        print(json.dumps({"error": None}), flush=True)

if action == "kill":
    convert()
    construct()
elif action == "full":
    mount("size=100k")
    attempt(convert)
    remount("size=64m")
    convert()
    used = sum(p.stat().st_size for p in folder.glob("**/*"))
    remount(f"size={used + int(half) >> 10}k")
    attempt(construct)
    remount("size=64m")
    print(construct().digest, flush=True)
elif action == "full-scratch":
    mount("size=300k")
    attempt(lambda: open_root(config, [path], seed=1, scratch=folder))
    remount("size=64m")
    with open_root(config, [path], seed=1, scratch=folder) as opened:
        print(opened.manifest.digest, flush=True)
elif action == "read-only":
    mount("size=64m")
    convert()
    remount("ro")
    attempt(construct)
"""


@pytest.fixture(scope="module", params=LAYOUTS)
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    config = small_config(folder, dataset=request.param)
    path = str(write_btag(folder / "TT.root", 3000, 3))
    return config, path, build(config, [path], folder / "set", chunk_size=500)


def in_a_mount(action, world, folder):
    """Lines that the child says, in a mount namespace of its own."""
    may_mount = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    if not shutil.which("unshare") or subprocess.run(may_mount, capture_output=True, check=False).returncode:
        pytest.skip("needs a small tmpfs, and this user may not mount one")
    config, path, reference = world
    half = sum(shard.bytes for shard in reference.manifest.shards) // 2
    folder.mkdir()
    command = ["unshare", "--mount", sys.executable, "-c", CHILD, action, config.source, str(folder), path, str(half)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) if line.startswith("{") else line for line in done.stdout.splitlines()]


def test_w07_a_full_disk(world, tmp_path):
    staging, construction, digest = in_a_mount("full", world, tmp_path / "small")
    assert (staging["error"], construction["error"]) == ("DiskError", "DiskError")
    assert f"'{tmp_path}/small/staged" in staging["message"]
    assert "cannot be written (the disk is full): make room" in staging["message"]
    assert f"'{tmp_path}/small/set" in construction["message"]
    assert "cannot be written (the disk is full): make room" in construction["message"]
    assert staging["left"] == []
    assert "set/processed_files.txt" not in construction["left"]
    assert "staged/0.arrow" in construction["left"]
    assert not [name for name in construction["left"] if name.endswith(".tmp")]
    assert digest == world[2].manifest.digest


@pytest.mark.long
def test_a_full_scratch_folder(world, tmp_path):
    failure, digest = in_a_mount("full-scratch", world, tmp_path / "small")
    assert failure["error"] == "DiskError"
    assert "cannot be written (the disk is full): make room or give another place" in failure["message"]
    assert failure["left"] == []
    assert digest == world[2].manifest.digest


def test_a_read_only_disk(world, tmp_path):
    (failure,) = in_a_mount("read-only", world, tmp_path / "small")
    assert failure["error"] == "DiskError"
    assert f"'{tmp_path}/small/set' cannot be written (the disk is read-only)" in failure["message"]


@pytest.mark.parametrize(
    "moment",
    [*(pytest.param(name, marks=pytest.mark.long) for name in ("staged/.*", "set/histogram.npy")), "set/.file_1.*"],
)
def test_w07_killed_at_any_moment(world, tmp_path, moment):
    config, path, reference = world
    command = [sys.executable, "-c", CHILD, "kill", config.source, str(tmp_path), path, "0"]
    child = subprocess.Popen(command)
    try:
        while child.poll() is None and not list(tmp_path.glob(moment)):
            time.sleep(0.0002)
    finally:
        child.kill()
        child.wait()
    assert child.returncode in (0, -signal.SIGKILL)
    directory, staged = tmp_path / "set", tmp_path / "staged" / "0.arrow"
    try:
        half = open_dataset(directory, config)
    except DataError as error:
        assert "holds no complete training set" in str(error)
    else:
        assert half.manifest == reference.manifest
    if not staged.exists():
        stage(StageJob(config, (path,), staged, 1))
    construct(config, [staged], directory, chunk_size=500, seed=1, filelist=[path], code_version="0")
    assert contents(directory) == contents(reference.directory)


def test_w07_nothing_of_a_killed_construction_stays(world, tmp_path):
    config, path, reference = world
    staged, directory = tmp_path / "0.arrow", tmp_path / "set"
    stage(StageJob(config, (path,), staged, 1))
    directory.mkdir()
    for written in reference.directory.iterdir():
        (directory / f".{written.name}.1234-0a1b2c3d.tmp").write_bytes(b"half")
    construct(config, [staged], directory, chunk_size=500, seed=1, filelist=[path], code_version="0")
    assert contents(directory) == contents(reference.directory)


def contents(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != "processed_files.txt"}
