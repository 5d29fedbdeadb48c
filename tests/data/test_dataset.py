"""Reading training sets back."""

import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.data.dataset import open_dataset, verify
from bhive_mltf.data.index import JetIndex, truth_bits, write_index
from bhive_mltf.errors import CorruptFileError, DataError, DatasetMismatchError
from tests.helpers.building import build, same, small_config, write_hand_made


@pytest.fixture(scope="module", params=["ArrowDataset", "LZ4Dataset"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    config = small_config(folder, dataset=request.param)
    paths = [write_hand_made(folder / f"TT_{i}.root", 70) for i in range(1)]
    dataset = build(config, paths, folder / "set", chunk_size=30)
    return config, dataset, dataset.read(0, 70)


@pytest.fixture
def copy(world, tmp_path):
    config, dataset, _ = world
    shutil.copytree(dataset.directory, tmp_path / "set")
    return config, tmp_path / "set"


@settings(max_examples=60)
@given(bounds=st.tuples(st.integers(0, 70), st.integers(0, 70)).map(sorted))
def test_any_range(world, bounds):
    _, dataset, whole = world
    start, stop = bounds
    block = dataset.read(start, stop)
    expected = whole.take(np.arange(start, stop))
    assert len(block) == stop - start
    assert same(block, expected)
    np.testing.assert_array_equal(block.jet_id, expected.jet_id)


@pytest.mark.parametrize("bounds", [(-1, 3), (4, 3), (0, 71)])
def test_ranges_outside(world, bounds):
    with pytest.raises(IndexError, match="of 70"):
        world[1].read(*bounds)


@pytest.mark.parametrize("bounds", [(0, 70), (25, 35), (7, 7)])
def test_columns_in_the_order_asked_for(world, bounds):
    _, dataset, whole = world
    block = dataset.read(*bounds, columns={"cpf": ["Cpfcan_logrel", "Cpfcan_pt"], "global": ("npv",)})
    expected = whole.take(np.arange(*bounds))
    assert set(block.features) == {"cpf", "global"}
    assert set(block.counts) == {"cpf"}
    np.testing.assert_array_equal(block.features["cpf"], expected.features["cpf"][:, [2, 0]])
    np.testing.assert_array_equal(block.features["global"], expected.features["global"][:, [2]])
    np.testing.assert_array_equal(block.kinematics, expected.kinematics)


def test_unknown_columns(world):
    with pytest.raises(DataError, match="no column `Cpfcan_p` in the group cpf; nearest: Cpfcan_pt"):
        world[1].read(0, 1, {"cpf": ["Cpfcan_p"]})
    with pytest.raises(DataError, match="no group npf; there are global, cpf, vtx"):
        world[1].read(0, 1, {"npf": ["x"]})


def test_index_agrees_with_the_jets(world):
    _, dataset, whole = world
    index = dataset.index
    np.testing.assert_array_equal(index.ids(), whole.jet_id)
    np.testing.assert_array_equal(index.weight, whole.weight)
    np.testing.assert_array_equal(index.process, whole.process)
    np.testing.assert_array_equal(index.truth_bits, truth_bits(whole.truth))
    np.testing.assert_array_equal(index.counts("cpf"), whole.counts["cpf"])
    part = index[10:40][range(5, 9)]
    np.testing.assert_array_equal(part.entry, whole.jet_id[15:19, 1])
    assert len(part) == 4
    with pytest.raises(KeyError):
        index.counts("lt")
    with pytest.raises(ValueError, match="contiguous"):
        index[::2]


def test_index_of_many_labels(tmp_path):
    truth = np.zeros((2, 64), bool)
    truth[0, 63] = truth[1, 0] = True
    assert truth_bits(truth).tolist() == [1 << 63, 1]
    with pytest.raises(DataError, match="65 truth labels"), write_index(tmp_path / "x.npy", [], 65):
        pass
    assert list(tmp_path.iterdir()) == []


def test_properties(world):
    config, dataset, _ = world
    assert len(dataset) == 70
    assert dataset.shard_edges.tolist() == [0, 30, 60, 70]
    assert dataset.histogram.shape == (3, 4, 3)
    assert dataset.content_ids.dtype == np.uint64
    assert dataset.schema.truths == config.labels
    assert dataset.manifest.jet_ids
    verify(dataset)


def total(dataset, start, stop):
    return float(dataset.read(start, stop).features["cpf"].sum())


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_other_processes(world, method):
    _, dataset, whole = world
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(total, dataset, 0, 70).result() == float(whole.features["cpf"].sum())


def test_pickled_copies_are_small_and_read_alike(world):
    _, dataset, whole = world
    content = pickle.dumps(dataset)
    assert len(content) < 5000
    assert same(pickle.loads(content).read(0, 70), whole)
    assert len(pickle.dumps(dataset.index)) < 500


def test_threads(world):
    _, dataset, whole = world
    fresh = pickle.loads(pickle.dumps(dataset))
    with ThreadPoolExecutor(8) as pool:
        blocks = list(pool.map(lambda i: fresh.read(i, i + 20), range(50)))
    assert all(same(block, whole.take(np.arange(i, i + 20))) for i, block in enumerate(blocks))


def test_w14_a_moved_directory_still_works(copy, world, tmp_path):
    config, directory = copy
    listed = (directory / "processed_files.txt").read_text().splitlines()
    assert not any(line.startswith(str(directory)) for line in listed)
    moved = directory.rename(tmp_path / "moved")
    assert same(open_dataset(moved, config).read(0, 70), world[2])


def test_no_dataset(tmp_path, world):
    with pytest.raises(DataError, match="holds no complete training set"):
        open_dataset(tmp_path, world[0])


def test_another_config(copy, tmp_path):
    _, directory = copy
    other = small_config(tmp_path / "other", n_vtx_candidates=3).model_copy(update={"name": "other"})
    with pytest.raises(DatasetMismatchError, match="made with config small, not with other"):
        open_dataset(directory, other)


def test_layout_is_that_of_the_directory(copy, world):
    config, directory = copy
    for layout in ("ArrowDataset", "LZ4Dataset"):
        assert same(open_dataset(directory, config.model_copy(update={"dataset": layout})).read(0, 70), world[2])


def test_plot_cuts_and_process_weights_are_free_to_change(copy):
    config, directory = copy
    open_dataset(directory, config.model_copy(update={"process_weights": {"TT": 2.0}, "process_cuts": {}}))


def shard_of(directory, number):
    return next(path for path in directory.glob(f"file_{number}.*") if path.suffix in (".arrow", ".lz4"))


def test_truncated_shard(copy):
    config, directory = copy
    shard = shard_of(directory, 1)
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CorruptFileError, match=rf"{shard.name}' has \d+ bytes, \d+ are recorded"):
        open_dataset(directory, config)


def test_missing_shard(copy):
    config, directory = copy
    shard_of(directory, 2).unlink()
    with pytest.raises(CorruptFileError, match="has 0 bytes|name other shards"):
        open_dataset(directory, config)


def test_flipped_bit(copy):
    config, directory = copy
    shard = shard_of(directory, 1)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptFileError, match=rf"content of '.*{shard.name}' has changed"):
        verify(open_dataset(directory, config))


def test_index_cut_off(copy):
    config, directory = copy
    index = directory / "index.npy"
    index.write_bytes(index.read_bytes()[:-40])
    with pytest.raises(CorruptFileError, match=r"index.npy' cannot be read"):
        open_dataset(directory, config)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format_version": 99}, DatasetMismatchError, "has format 99"),
        ({"n_jets": "many"}, CorruptFileError, "not a whole manifest"),
        ({"n_jets": 69}, CorruptFileError, "manifest.json' has changed since it was written"),
        ({"n_jets": 69, "checksum": None}, CorruptFileError, "has 70 jets, 69 are recorded"),
        (None, CorruptFileError, "is not a manifest"),
    ],
)
def test_damaged_manifest(copy, change, error, message):
    config, directory = copy
    path = directory / "manifest.json"
    path.write_text("{" if change is None else json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=message):
        open_dataset(directory, config)


def test_missing_histogram(copy):
    config, directory = copy
    (directory / "histogram.npy").unlink()
    with pytest.raises(CorruptFileError, match=r"histogram.npy' is missing"):
        _ = open_dataset(directory, config).histogram


def test_index_is_mapped(world):
    assert isinstance(world[1].index, JetIndex)
    assert not world[1].index.weight.flags.writeable
