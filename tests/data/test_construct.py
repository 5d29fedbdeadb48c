"""Construction: the global order, accounting, crashes."""

import json
import logging
import shutil

import numpy as np
import pytest
import uproot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bhive_mltf import config as configs
from bhive_mltf.data.build import construct as construction
from bhive_mltf.data.build import merge, set_writer
from bhive_mltf.data.build.construct import check_parameters
from bhive_mltf.data.build.stage import stage
from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.data.loader import order
from bhive_mltf.data.manifest import FILE_NAME, Manifest
from bhive_mltf.data.ntuples.jobs import ReadOptions, StageJob
from bhive_mltf.data.weighting.grid import reference_shape
from bhive_mltf.errors import DataError, DatasetMismatchError, FilelistError, ParameterError
from bhive_mltf.testing.jets import write_btag, write_jetclass
from tests.helpers.building import build, same, small_config, write_hand_made

SIZES = (41, 7, 83)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A config, three files, and the set made from them in one piece."""
    folder = tmp_path_factory.mktemp("world")
    config = small_config(folder)
    paths = [
        write_hand_made(folder / f"{name}.root", n) for name, n in zip(("TT_0", "TT_1", "QCD_0"), SIZES, strict=True)
    ]
    return folder, config, paths, build(config, paths, folder / "reference", chunk_size=1000)


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def jets_of(dataset):
    """Jets as (content id, entry), in stored order."""
    ids = dataset.index.ids()
    return [(int(dataset.content_ids[file]), int(entry)) for file, entry in ids]


def test_order_is_that_of_the_keys(world):
    _, _, _, dataset = world
    key = order.random_key(1, "global order")
    every = [(int(c), e) for c, n in zip(dataset.content_ids, SIZES, strict=True) for e in range(n)]
    expected = sorted(
        (int(order.random_bits(key, np.array([c], np.uint64), np.array([e], np.uint64))[0]), c, e) for c, e in every
    )
    assert jets_of(dataset) == [(c, e) for _, c, e in expected]


def test_values_follow_the_ids(world):
    _, config, paths, dataset = world
    block = dataset.read(0, len(dataset))
    for number, path in enumerate(paths):
        arrays = uproot.open(path)[config.treename].arrays(library="np")
        mine = np.flatnonzero(block.jet_id[:, 0] == number)
        jets = block.take(mine)
        entries = jets.jet_id[:, 1]
        np.testing.assert_array_equal(np.sort(entries), np.arange(SIZES[number]))
        np.testing.assert_array_equal(jets.kinematics[:, 0], arrays["jet_pt"][entries])
        tracks = [arrays["Cpfcan_pt"][entry][:5] for entry in entries]
        np.testing.assert_array_equal(jets.features["cpf"][:, 0], np.concatenate(tracks))
        np.testing.assert_array_equal(jets.counts["cpf"], [len(t) for t in tracks])
        assert set(jets.process) == {0 if "TT" in path else 1}


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_w03_every_jet_once_whatever_the_chunks(world, tmp_path, monkeypatch, data):
    _, config, paths, reference = world
    directory = tmp_path / "set"
    shutil.rmtree(directory, ignore_errors=True)
    bucket = data.draw(st.integers(1, 200))
    batch = data.draw(st.integers(1, 60))
    monkeypatch.setattr(merge, "_bucket_jets", lambda *_: bucket)
    monkeypatch.setattr(set_writer, "BATCH_JETS", batch)
    dataset = build(
        config,
        data.draw(st.permutations(paths)),
        directory,
        chunk_size=data.draw(st.integers(1, 200)),
        per_job=data.draw(st.integers(1, 3)),
        max_jets=data.draw(st.integers(1, 90)),
    )
    assert dataset.manifest.digest == reference.manifest.digest
    assert jets_of(dataset) == jets_of(reference)
    assert same(dataset.read(0, len(dataset)), reference.read(0, len(reference)))
    assert sum(shard.rows for shard in dataset.manifest.shards) == dataset.manifest.accounting.read == sum(SIZES)


def test_digest_sees_what_matters(world, tmp_path):
    _, config, paths, reference = world
    others = [
        build(config, paths[:2], tmp_path / "fewer").manifest.digest,
        build(config, paths, tmp_path / "seed", seed=2).manifest.digest,
        build(small_config(tmp_path / "c", n_vtx_candidates=1), paths, tmp_path / "columns").manifest.digest,
        build(small_config(tmp_path / "w", reference_flavour="isC"), paths, tmp_path / "weights").manifest.digest,
    ]
    assert len({*others, reference.manifest.digest}) == 5


def test_the_place_of_the_files_does_not_matter(world, tmp_path):
    _, config, paths, reference = world
    moved = [str(shutil.copy(path, tmp_path / f"elsewhere_{path.rsplit('/', 1)[1]}")) for path in paths]
    assert build(config, moved, tmp_path / "set").manifest.digest == reference.manifest.digest


def test_w11_shards_are_mixed(tmp_path):
    config = configs.load("jet_class")
    labels = ("label_QCD", "label_Hbb", "label_Tbl")
    names = ("ZJetsToNuNu_0", "HToBB_0", "TTBarLep_0")
    paths = [str(write_jetclass(tmp_path / f"{n}.root", 300, 1, label)) for n, label in zip(names, labels, strict=True)]
    dataset = build(config, paths, tmp_path / "set", chunk_size=150)
    for low, high in zip(dataset.shard_edges[:-1], dataset.shard_edges[1:], strict=True):
        shares = np.bincount(dataset.index[int(low) : int(high)].file, minlength=3) / 150
        assert (np.abs(shares - 1 / 3) < 0.15).all()
    # Inside a shard too: no run of one file.
    assert np.count_nonzero(np.diff(dataset.index.file)) > 0.5 * len(dataset)


def test_files_and_records(world, tmp_path):
    _, config, paths, _ = world
    dataset = build(config, paths, tmp_path / "set", chunk_size=50)
    directory = dataset.directory
    manifest = dataset.manifest
    assert sorted(files_of(directory)) == sorted(
        [
            *(f"file_{i}.arrow" for i in range(3)),
            set_writer.INDEX,
            set_writer.HISTOGRAM,
            set_writer.WEIGHTS,
            set_writer.WEIGHTING,
            set_writer.FILES,
            FILE_NAME,
        ]
    )
    listed = (directory / "processed_files.txt").read_text()
    assert listed == "\n".join(str(directory / f"file_{i}.arrow") for i in range(3))
    weights = json.loads((directory / "weights.json").read_text())
    assert weights["chunk_size"] == [50, 50, 31] == [shard.rows for shard in manifest.shards]
    sums = [dataset.index[a : a + n].weight.sum(dtype=float) for a, n in ((0, 50), (50, 50), (100, 31))]
    np.testing.assert_allclose(weights["sum_weight"], sums, rtol=1e-12)
    histogram = np.load(directory / "histogram.npy")
    assert (histogram.dtype, histogram.shape) == (np.float32, (3, 4, 3))
    assert histogram.sum() == 131
    assert [(s.path, s.entries, s.accepted) for s in manifest.sources] == list(zip(paths, SIZES, SIZES, strict=True))
    assert manifest.filelist == tuple(paths)
    assert (manifest.config_name, manifest.config_digest) == ("small", config.dataset_digest)
    assert Manifest.read(directory) == manifest


def test_weights_are_those_of_the_bins(tmp_path):
    config = configs.load("offline_run3")
    paths = [str(write_btag(tmp_path / f"{name}.root", 1500, 3, name)) for name in ("TT", "QCD")]
    dataset = build(config, paths, tmp_path / "set")
    block = dataset.read(0, len(dataset))
    table = reference_shape(np.load(tmp_path / "set" / "histogram.npy"), config.labels.index("isB"))
    for i in range(0, len(block), 37):
        pt, eta = block.kinematics[i].astype(float)
        x = np.digitize(pt, config.bins_pt) - 1
        y = np.digitize(eta, config.bins_eta) - 1
        assert block.weight[i] == np.float32(table[np.argmax(block.truth[i]), x, y])
    assert 0 < block.weight.mean() < 1


def test_accounting_adds_up(tmp_path):
    config = small_config(tmp_path, bins_pt=[22, 1000])
    npv = np.zeros(20, np.float32)
    npv[9] = np.nan
    light = {"isUD": (np.arange(20) % 6 == 2).astype(np.int32)}
    path = write_hand_made(tmp_path / "TT.root", 20, npv=npv, **light)
    accounting = build(config, [path], tmp_path / "set").manifest.accounting
    assert accounting.rejected == {"no_truth": 3, "non_finite": 1, "outside_bins": 2}
    assert (accounting.read, accounting.accepted) == (20, 14)


def test_no_jet_accepted(tmp_path):
    config = small_config(tmp_path, bins_pt=[5000, 6000])
    with pytest.raises(DataError, match=r"no jet .*6 jets read, 0 accepted, rejected: .*outside_bins 6"):
        build(config, [write_hand_made(tmp_path / "TT.root")], tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_empty_reference_flavour(tmp_path):
    config = small_config(tmp_path, reference_flavour="isB")
    path = write_hand_made(tmp_path / "TT.root", 9, isB=np.zeros(9, np.int32))
    with pytest.raises(DataError, match="reference flavour isB has no jets; labels with jets: isC, isUD"):
        build(config, [path], tmp_path / "set")


def test_other_empty_labels_warn(tmp_path, caplog):
    path = write_hand_made(tmp_path / "TT.root", 9, isC=np.zeros(9, np.int32))
    with caplog.at_level(logging.WARNING):
        build(small_config(tmp_path), [path], tmp_path / "set")
    assert caplog.messages == ["no jets of the truth labels isC of config small"]


def test_skipped_files_are_recorded_and_warned_of_once(world, tmp_path, caplog):
    _, config, paths, _ = world
    bad = tmp_path / "QCD_bad.root"
    bad.write_bytes(b"root nothing")
    with caplog.at_level(logging.WARNING):
        dataset = build(config, [*paths, str(bad)], tmp_path / "set", skip_bad_files=True)
    assert [skip.path for skip in dataset.manifest.skipped_files] == [str(bad)]
    assert dataset.manifest.filelist == (*paths, str(bad))
    assert [message for message in caplog.messages if "QCD_bad.root" in message] == caplog.messages
    assert len(caplog.messages) == 1


def test_same_content_twice(world, tmp_path):
    _, config, paths, _ = world
    copy = shutil.copy(paths[0], tmp_path / "TT_copy.root")
    with pytest.raises(FilelistError, match=r"TT_0.root' and '.*TT_copy.root' hold the same bytes"):
        build(config, [*paths, str(copy)], tmp_path / "set")


@pytest.mark.parametrize("chunk_size", [0, -5])
def test_chunk_size_out_of_range(world, tmp_path, chunk_size):
    _, config, paths, _ = world
    with pytest.raises(ParameterError, match=f"--chunk-size {chunk_size}: a shard holds one jet or more"):
        build(config, paths, tmp_path / "set", chunk_size=chunk_size)
    assert not (tmp_path / "set").exists()


def test_w09_lz4_in_float16_is_refused(tmp_path):
    config = small_config(tmp_path, data_precision="float16").model_copy(update={"dataset": "LZ4Dataset"})
    with pytest.raises(DataError, match=r"float16 cannot hold its own number of rows.*dataset: ArrowDataset"):
        check_parameters(config, 100_000)


def test_w09_float16_rounds_candidates_only(tmp_path):
    path = str(write_btag(tmp_path / "TT.root", 3000, 3))
    wide = build(small_config(tmp_path), [path], tmp_path / "wide").read(0, 1500)
    narrow = build(small_config(tmp_path, data_precision="float16"), [path], tmp_path / "narrow").read(0, 1500)
    for name in ("truth", "weight", "jet_id", "kinematics"):
        np.testing.assert_array_equal(getattr(narrow, name), getattr(wide, name))
    np.testing.assert_array_equal(narrow.features["global"], wide.features["global"])
    assert narrow.features["cpf"].dtype == np.float32
    np.testing.assert_array_equal(narrow.features["cpf"], wide.features["cpf"].astype(np.float16))


def test_float16_keeps_large_numbers_finite(tmp_path):
    npv = np.full(6, 1e6, np.float32)
    config = small_config(tmp_path, data_precision="float16", cpf_custom_features=[{"big": "Cpfcan_pt * 1e6"}])
    block = build(config, [write_hand_made(tmp_path / "TT.root", 6, npv=npv)], tmp_path / "set").read(0, 6)
    assert block.features["cpf"][:, 2].tolist() == [65504.0] * 7
    assert (block.features["global"][:, 2] == 1e6).all()


def test_staged_files_of_another_seed_are_refused(world, tmp_path):
    _, config, paths, _ = world
    stage(StageJob(config, (paths[0],), tmp_path / "a.arrow", 1))
    with pytest.raises(DatasetMismatchError, match="a.arrow' was staged with another config or seed"):
        construction.construct(
            config, [tmp_path / "a.arrow"], tmp_path / "set", chunk_size=9, seed=2, filelist=paths[:1]
        )


@pytest.mark.parametrize("layout", ["ArrowDataset", "LZ4Dataset"])
@pytest.mark.parametrize("fails_at", ["shard", "histogram.npy", "weights.json", "manifest.json", "processed_files.txt"])
def test_w07_a_crash_leaves_nothing_that_looks_complete(world, tmp_path, monkeypatch, layout, fails_at):
    _, config, paths, _ = world
    config = config.model_copy(update={"dataset": layout})
    directory = tmp_path / "set"
    build(config, paths[:2], directory, chunk_size=10)  # stale files of an earlier construction
    job = StageJob(config, tuple(paths), tmp_path / "staged.arrow", 1, options=ReadOptions(max_jets=30))
    stage(job)
    with monkeypatch.context() as patch:
        break_at(patch, fails_at)
        with pytest.raises(OSError, match="disk full"):
            run(config, job, directory)
    assert not (directory / "processed_files.txt").exists()
    with pytest.raises(DataError, match="holds no complete training set"):
        open_dataset(directory, config)
    assert job.target.exists()
    run(config, job, directory)
    run(config, job, tmp_path / "fresh")
    expected = files_of(tmp_path / "fresh")
    expected["processed_files.txt"] = expected["processed_files.txt"].replace(b"/fresh/", b"/set/")
    assert files_of(directory) == expected


def run(config, job, directory):
    return construction.construct(config, [job.target], directory, chunk_size=40, seed=1, filelist=job.paths)


def break_at(patch, where):
    def fail(*_):
        raise OSError("disk full")

    if where == "shard":
        original, calls = set_writer._write_shard, []

        def third(*args, **options):
            calls.append(1)
            return fail() if len(calls) == 3 else original(*args, **options)

        patch.setattr(set_writer, "_write_shard", third)
        return
    replace = set_writer.atomic.os.replace
    patch.setattr(set_writer.atomic.os, "replace", lambda a, b: fail() if str(b).endswith(where) else replace(a, b))
