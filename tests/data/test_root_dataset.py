"""ROOT files read on the fly: the batches of the constructed set, and a scratch set that goes away."""

import gc
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from bhive_mltf.data.dataset import Dataset
from bhive_mltf.data.loader.batch_plan import split_ranges
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.data.ntuples import root_dataset
from bhive_mltf.data.ntuples.root_dataset import open_root
from bhive_mltf.errors import CorruptFileError, DataError, FilelistError, ParameterError
from bhive_mltf.interface import GroupInput, ModelInputs
from tests.helpers.building import build, same, small_config, write_hand_made

SIZES = (120, 45, 83)
INPUTS = ModelInputs(
    classes=(("b", ("isB",)), ("c", ("isC",)), ("l", ("isUD",))),
    groups=(
        GroupInput("global", ("npv", "jet_pt"), 1),
        GroupInput("cpf", ("Cpfcan_logrel", "Cpfcan_pt"), 5),
        GroupInput("vtx", ("sv_mass",), 2),
    ),
    padding="longest",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ntuples")
    names = ("TT_0", "QCD_0", "TT_1")
    return [write_hand_made(folder / f"{name}.root", n) for name, n in zip(names, SIZES, strict=True)]


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "scratch"


def sets_in(scratch):
    return sorted(scratch.glob("*/*"))


def test_same_jets_as_the_constructed_set(files, scratch, tmp_path):
    config = small_config(tmp_path)
    constructed = build(config, files, tmp_path / "set", chunk_size=100, seed=5)
    with open_root(config, files, seed=5, chunk_size=100, scratch=scratch) as opened:
        assert opened.manifest.digest == constructed.manifest.digest
        assert opened.manifest.shards == constructed.manifest.shards
        assert same(opened.read(0, len(opened)), constructed.read(0, len(constructed)))
        np.testing.assert_array_equal(opened.histogram, constructed.histogram)


@pytest.mark.parametrize(("mode", "n_threads"), [("training", 0), ("training", 2), ("validation", 0)])
def test_same_batches_as_the_constructed_set(files, scratch, tmp_path, mode, n_threads):
    config = small_config(tmp_path)
    constructed = build(config, files, tmp_path / "set", seed=5)
    with open_root(config, files, seed=5, scratch=scratch) as opened:
        jets = split_ranges(opened, 0.7)[mode == "validation"]
        assert jets == split_ranges(constructed, 0.7)[mode == "validation"]
        loaders = [
            BatchLoader(s, jets, INPUTS, mode=mode, batch_size=16, n_threads=n, seed=9, weighted=True, config=config)
            for s, n in ((opened, n_threads), (constructed, 0))
        ]
        n_batches = 0
        for epoch in (0, 3):
            for mine, theirs in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
                n_batches += 1
                np.testing.assert_array_equal(mine.jet_id, theirs.jet_id)
                for name in theirs.groups:
                    np.testing.assert_array_equal(mine.groups[name].features, theirs.groups[name].features)
        for loader in loaders:
            loader.close()
        assert n_batches > 4


def test_lz4_configs_read_the_same(files, scratch, tmp_path):
    digests = set()
    for layout in ("ArrowDataset", "LZ4Dataset"):
        with open_root(small_config(tmp_path, dataset=layout), files, seed=1, scratch=scratch) as opened:
            digests.add(opened.manifest.digest)
    assert len(digests) == 1


def test_nothing_is_left(files, scratch, tmp_path):
    config = small_config(tmp_path)
    opened = open_root(config, files, seed=1, scratch=scratch)
    (directory,) = sets_in(scratch)
    assert opened.directory == directory
    assert not (directory / "staged").exists()
    opened.close()
    assert sets_in(scratch) == []
    opened.close()
    opened = open_root(config, files, seed=1, scratch=scratch)
    del opened
    gc.collect()
    assert sets_in(scratch) == []


def test_the_same_inputs_are_converted_once(files, scratch, tmp_path, monkeypatch):
    config = small_config(tmp_path)
    first = open_root(config, files, seed=1, scratch=scratch)
    with monkeypatch.context() as patch:
        patch.setattr(root_dataset, "stage_many", None)
        second = open_root(config, files, seed=1, scratch=scratch)
    other = open_root(config, files, seed=2, scratch=scratch)
    assert len(sets_in(scratch)) == 2
    first.close()
    assert len(second.read(0, 10)) == 10
    second.close()
    assert sets_in(scratch) == [other.directory]
    other.close()


def test_changed_files_are_converted_anew(scratch, tmp_path):
    config = small_config(tmp_path)
    path = write_hand_made(tmp_path / "TT.root", 30)
    with open_root(config, [path], seed=1, scratch=scratch) as before:
        write_hand_made(tmp_path / "TT.root", 40)
        with open_root(config, [path], seed=1, scratch=scratch) as after:
            assert (len(before), len(after)) == (30, 40)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_copies_do_not_own_the_scratch_set(files, scratch, tmp_path):
    with open_root(small_config(tmp_path), files, seed=1, scratch=scratch) as opened:
        copy = pickle.loads(pickle.dumps(opened))
        assert type(copy) is Dataset
        assert same(copy.read(3, 50), opened.read(3, 50))
        del copy
        gc.collect()
        child = os.fork()
        if child == 0:
            opened.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert opened.directory.exists()


CHILD = """
import sys, time
from pathlib import Path
from bhive_mltf import config
from bhive_mltf.data.ntuples.root_dataset import open_root
opened = open_root(config.load(sys.argv[1]), sys.argv[3:], seed=1, scratch=Path(sys.argv[2]))
print(len(opened), flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_its_set_to_the_next(files, scratch, tmp_path):
    config = small_config(tmp_path)
    command = [sys.executable, "-c", CHILD, config.source, str(scratch), *files]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert int(child.stdout.readline()) == sum(SIZES)
        (theirs,) = sets_in(scratch)
        with open_root(config, files, seed=2, scratch=scratch):
            assert theirs.exists()
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    with open_root(config, files, seed=2, scratch=scratch) as opened:
        assert sets_in(scratch) == [opened.directory]
    assert sets_in(scratch) == []


def test_processes_that_start_together_share_one_set(files, scratch, tmp_path):
    config = small_config(tmp_path)
    command = [sys.executable, "-c", CHILD.replace("time.sleep(60)", "sys.stdin.read()"), config.source, str(scratch)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen([*command, *files], **pipes) for _ in range(2)]
    try:
        assert [int(child.stdout.readline()) for child in children] == [sum(SIZES)] * 2
        assert len(sets_in(scratch)) == 1
    finally:
        for child in children:
            child.communicate("")
    assert [child.returncode for child in children] == [0, 0]
    assert sets_in(scratch) == []


def test_bad_input(files, scratch, tmp_path):
    config = small_config(tmp_path)
    with pytest.raises(FilelistError, match="no input files"):
        open_root(config, [], seed=1, scratch=scratch)
    with pytest.raises(ParameterError, match="--chunk-size 0"):
        open_root(config, files, seed=1, chunk_size=0, scratch=scratch)
    bad = tmp_path / "TT_bad.root"
    bad.write_bytes(b"root nothing")
    with pytest.raises(CorruptFileError, match="TT_bad.root"):
        open_root(config, [*files, str(bad)], seed=1, scratch=scratch)
    assert sets_in(scratch) == []
    with open_root(config, [*files, str(bad)], seed=1, skip_bad_files=True, scratch=scratch) as opened:
        assert [skip.path for skip in opened.manifest.skipped_files] == [str(bad)]


def test_a_scratch_folder_that_cannot_be_used(files, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set TMPDIR to a folder of yours"):
        open_root(small_config(tmp_path), files, seed=1, scratch=tmp_path / "file")
