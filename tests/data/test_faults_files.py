"""Files that were cut off or changed after a set was written: an error that names them, or the same jets."""

import json
import os
import shutil

import numpy as np
import pytest

from bhive_mltf import config as configs
from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.data.index import JetIndex
from bhive_mltf.data.loader import reader
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.data.verification import problems
from bhive_mltf.errors import CorruptFileError, DataError
from bhive_mltf.models import registry
from bhive_mltf.testing.jets import write_btag
from tests.helpers.building import build, same, small_config

LAYOUTS = ["ArrowDataset", "LZ4Dataset"]
SIDES = ["index.npy", "histogram.npy", "weights.json", "manifest.json", "processed_files.txt"]


@pytest.fixture(scope="module", params=LAYOUTS)
def world(request, tmp_path_factory):
    """A set of two shards, in the layout, and its jets."""
    folder = tmp_path_factory.mktemp("world")
    config = small_config(folder, dataset=request.param)
    path = str(write_btag(folder / "TT.root", 6000, 3))
    dataset = build(config, [path], folder / "set", chunk_size=2500)
    return config, dataset, dataset.read(0, len(dataset))


@pytest.fixture
def copy(world, tmp_path):
    shutil.copytree(world[1].directory, tmp_path / "set")
    return tmp_path / "set"


def shard_of(directory, number=1):
    return next(p for p in directory.glob(f"file_{number}.*") if p.suffix in (".arrow", ".lz4"))


def outcome(config, directory, expected):
    """None when every jet, weight and bin is as it was; else the error."""
    dataset, jets = expected
    try:
        opened = open_dataset(directory, config)
        block = opened.read(0, len(opened))
        histogram = opened.histogram
    except (CorruptFileError, DataError) as error:
        return error
    assert same(block, jets)
    np.testing.assert_array_equal(block.jet_id, jets.jet_id)
    index = opened.index
    np.testing.assert_array_equal(index.ids(), dataset.index.ids())
    for column in ("weight", "process", "truth_bits"):
        np.testing.assert_array_equal(getattr(index, column), getattr(dataset.index, column))
    np.testing.assert_array_equal(histogram, dataset.histogram)
    return None


@pytest.mark.parametrize("name", [*SIDES, "shard", "file_1.seek.npy"])
@pytest.mark.parametrize("kept", [0, 1, 0.5, -3])
def test_cut_off(world, copy, name, kept):
    config, *expected = world
    path = shard_of(copy) if name == "shard" else copy / name
    if not path.exists():
        pytest.skip("the layout has no such file")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if 0 < kept < 1 else kept])
    error = outcome(config, copy, expected)
    assert isinstance(error, CorruptFileError), error
    assert path.name in str(error)


@pytest.mark.parametrize("name", [*SIDES, "file_0.seek.npy"])
def test_flipped_bits_beside_the_shards(world, copy, name):
    config, *expected = world
    path = copy / name
    if not path.exists():
        pytest.skip("the layout has no such file")
    content = path.read_bytes()
    rng = np.random.default_rng(4)
    harmless = 0
    for position in {0, len(content) - 1, *rng.integers(len(content), size=60).tolist()}:
        changed = bytearray(content)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        error = outcome(config, copy, expected)
        if error is None:
            harmless += 1
        else:
            assert name in str(error), error
    # Of `processed_files.txt` only the names count, not the folders; of JSON, one blank is as good as another.
    assert harmless <= {"processed_files.txt": 60, "manifest.json": 5}.get(name, 0)


def test_flipped_bits_in_a_shard(world, copy):
    config, *expected = world
    path = shard_of(copy, 0)
    content = path.read_bytes()
    rng = np.random.default_rng(4)
    found = 0
    for position in {0, len(content) - 1, *rng.integers(len(content), size=40).tolist()}:
        changed = bytearray(content)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        error = outcome(config, copy, expected)
        found += error is not None
        assert error is None or path.name in str(error), error
        wrong = problems(open_dataset(copy, config))
        assert any("has changed since it was written" in line and path.name in line for line in wrong)
    # Bytes between the columns of an Arrow file, and most of its footer, mean nothing.
    assert found > 30


def test_problems_name_the_jets(world, copy):
    config, *_ = world
    path = copy / "index.npy"
    content = bytearray(path.read_bytes())
    dataset = open_dataset(copy, config)
    assert problems(dataset) == []
    row = dataset.index._rows.dtype
    last, first = len(dataset) - 2501, 0  # 2500 jets in the first shard; blocks end at multiples of 2048
    content[len(content) - row.itemsize + row.fields["weight"][1]] ^= 1
    path.write_bytes(content)
    shutil.copy(path, copy / "other.npy")
    dataset._index = JetIndex(copy / "other.npy")
    shard = shard_of(copy)
    assert problems(dataset) == [
        f"'{path}' has changed since the training set was made",
        f"jets {first} to {last} of '{shard}' differ from the index in weight",
    ]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("processed_files.txt", lambda text: text.rsplit("\n", 1)[0], "name other shards"),
        ("processed_files.txt", lambda text: "\n".join(reversed(text.split("\n"))), "in another order"),
        ("processed_files.txt", lambda text: text + "\n/elsewhere/file_2.arrow", "name other shards"),
        ("weights.json", lambda text: text.replace("2500", "2400"), "weights.json' has changed"),
    ],
)
def test_files_that_disagree_with_the_manifest(world, copy, name, change, message):
    config, *expected = world
    path = copy / name
    path.write_text(change(path.read_text()))
    error = outcome(config, copy, expected)
    assert isinstance(error, CorruptFileError)
    assert name in str(error)
    assert message.split()[-1] in str(error)


def test_a_file_of_another_set(world, copy, tmp_path):
    config, *expected = world
    path = str(write_btag(tmp_path / "TT.root", 6000, 4))
    other = build(config, [path], tmp_path / "other", chunk_size=2500)
    for name in ("index.npy", "histogram.npy"):
        kept = (copy / name).read_bytes()
        shutil.copy(other.directory / name, copy / name)
        error = outcome(config, copy, expected)
        assert isinstance(error, CorruptFileError)
        assert name in str(error)
        (copy / name).write_bytes(kept)
    assert outcome(config, copy, expected) is None


def test_manifests_without_checksums_are_read(world, copy):
    config, *expected = world
    path = copy / "manifest.json"
    value = json.loads(path.read_text())
    del value["checksum"], value["files"]
    path.write_text(json.dumps(value))
    assert outcome(config, copy, expected) is None


def test_w08_numpy_datasets_are_refused_with_what_can_be_read(world, tmp_path):
    directory = tmp_path / "numpy"
    directory.mkdir()
    np.savez(directory / "file_0.npz", global_features=np.zeros(3))
    (directory / "processed_files.txt").write_text(str(directory / "file_0.npz"))
    with pytest.raises(DataError, match=r"file_0.npz' is of upstream's NumPy layout.*ArrowDataset, LZ4Dataset"):
        open_dataset(directory, world[0])


@pytest.mark.parametrize("name", ["file_0.arrow", "index.npy"])
def test_f01_a_block_lost_before_a_later_epoch(tmp_path, monkeypatch, name):
    """Columns per jet, lists of candidates and the index are mapped: what is away is not touched, which would kill."""
    config = configs.load("offline_run3")
    dataset = build(config, [str(write_btag(tmp_path / "TT.root", 300, 3))], tmp_path / "set")
    model = registry.create("DeepJet", config)
    options = {"mode": "training", "batch_size": 64, "seed": 1, "weighted": False, "unmatched": "drop"}
    loader = BatchLoader(dataset, range(len(dataset)), model.inputs, **options)
    assert sum(1 for _ in loader.epoch(0)) == loader.n_batches(0)
    monkeypatch.setattr(reader, "KEPT_S", 0.0)
    path = dataset.directory / name
    os.truncate(path, 4096)
    with pytest.raises(CorruptFileError, match=rf"{name}' cannot be read: .*: build the training set again"):
        next(loader.epoch(1))
