"""Upstream's LZ4 sets that are large, damaged, contradictory, or derived by two processes at once."""

import shutil
import subprocess
import sys
import tracemalloc

import lz4.frame
import numpy as np
import pytest

from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.data.verification import problems
from bhive_mltf.errors import CorruptFileError
from tests.data.test_lz4_dataset import ROW, N, account, content_by_hand, rows_by_hand, write_foreign
from tests.helpers.building import same, small_config


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path, dataset="LZ4Dataset")


def test_w26_memory_does_not_grow_with_the_file(config, tmp_path):
    """Peak of what is allocated while a frame of 200 MB is derived and read through, one column of it kept."""
    rows = np.tile(rows_by_hand(), (50, 1))
    directory = write_foreign(tmp_path / "set", [rows_by_hand()])
    n = 1_000 * len(rows)
    with lz4.frame.open(directory / "file_0.lz4", "wb") as frame:
        frame.write(np.array([n, ROW], "<f4").tobytes())
        for _ in range(1_000):
            frame.write(rows.tobytes())
    account(directory, [n])
    tracemalloc.start()
    try:
        dataset = open_dataset(directory, config)
        total = sum(len(dataset.read(start, min(start + 2048, n))) for start in range(0, n, 100_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 20 * 2048
    assert n * ROW * 4 > 150e6
    assert peak < 40e6


@pytest.mark.parametrize("linked", [True, False])
def test_blocks_of_foreign_frames_are_checked_on_read(config, tmp_path, linked):
    rows = np.tile(rows_by_hand(), (300, 1))
    rng = np.random.default_rng(1)
    rows[:, 2] = rng.random(len(rows))  # not so easy to compress
    directory = write_foreign(tmp_path / "set", [rows], block_linked=linked)
    whole = open_dataset(directory, config).read(0, len(rows))
    path = directory / "file_0.lz4"
    content = path.read_bytes()
    found = 0
    for position in rng.integers(20, len(content), 40):
        changed = bytearray(content)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            block = open_dataset(directory, config).read(0, len(rows))
        except CorruptFileError as error:
            found += "file_0.lz4" in str(error)
        else:
            assert same(block, whole)
    assert found >= 38


@pytest.mark.parametrize("what", ["a line less", "rows", "not JSON"])
def test_a_list_that_upstreams_account_contradicts(config, tmp_path, what):
    rows = rows_by_hand()
    directory = write_foreign(tmp_path / "set", [rows[:30], rows[30:]])
    if what == "a line less":
        (directory / "processed_files.txt").write_text(str(directory / "file_0.lz4"))
    elif what == "rows":
        (directory / "file_1.lz4").write_bytes(lz4.frame.compress(content_by_hand(rows[31:])))
    else:
        (directory / "weights.json").write_text("[]")
    with pytest.raises(CorruptFileError, match="weights.json"):
        open_dataset(directory, config)
    assert not (directory / "manifest.json").exists()


DERIVE = """
import sys
from bhive_mltf import config
from bhive_mltf.data.dataset import open_dataset
loaded = config.load(sys.argv[1])
sys.stdin.readline()
print(open_dataset(sys.argv[2], loaded).manifest.digest, flush=True)
"""


def test_two_processes_derive_at_once(config, tmp_path):
    rows = np.tile(rows_by_hand(), (200, 1))
    directory = write_foreign(tmp_path / "set", [rows, rows[:500]])
    command = [sys.executable, "-c", DERIVE, config.source, str(directory)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    digests = {child.communicate()[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0]
    dataset = open_dataset(directory, config)
    assert digests == {dataset.manifest.digest}
    assert problems(dataset) == []
    assert not [path.name for path in directory.iterdir() if path.name.startswith(".")]
    np.testing.assert_array_equal(dataset.read(8_000, 8_500).kinematics, rows[:500, :2])


def test_equal_names_in_two_folders(config, tmp_path):
    rows = rows_by_hand()
    for name, part in (("a", rows[:25]), ("b", rows[25:])):
        write_foreign(tmp_path / name, [part])
    directory = write_foreign(tmp_path / "set", [rows])
    (directory / "file_0.lz4").unlink()
    (directory / "processed_files.txt").write_text("\n".join(str(tmp_path / n / "file_0.lz4") for n in "ab"))
    account(directory, [25, 15], (1.0, 1.0))
    np.testing.assert_array_equal(open_dataset(directory, config).read(0, N).kinematics, rows[:, :2])


READ_ONLY = """
import subprocess, sys
from pathlib import Path
from bhive_mltf import config
from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.errors import DataError
loaded, directory = config.load(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "--bind", directory, directory], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
try:
    open_dataset(directory, loaded)
except DataError as error:
    print(error)
print(open_dataset(directory, loaded, Path(sys.argv[3])).read(0, 3).kinematics.tolist())
"""


def test_a_set_on_a_read_only_disk(config, tmp_path):
    directory = write_foreign(tmp_path / "set", [rows_by_hand()])
    before = sorted(directory.iterdir())
    may_mount = ["unshare", "--mount", "mount", "--bind", str(directory), str(directory)]
    if not shutil.which("unshare") or subprocess.run(may_mount, capture_output=True, check=False).returncode:
        pytest.skip("needs a read-only mount, and this user may not make one")
    command = [
        "unshare",
        "--mount",
        sys.executable,
        "-c",
        READ_ONLY,
        config.source,
        str(directory),
        str(tmp_path / "side"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    refusal, jets = done.stdout.splitlines()
    assert "none can be written there: copy the dataset" in refusal
    assert jets == str(rows_by_hand()[:3, :2].tolist())
    assert sorted(directory.iterdir()) == before
    assert (tmp_path / "side" / "manifest.json").exists()
