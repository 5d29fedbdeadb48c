"""Upstream's LZ4 layout, byte by byte, ours and foreign."""

import json
import struct

import lz4.frame
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.data import dataset as reading
from bhive_mltf.data.build import set_writer
from bhive_mltf.data.dataset import open_dataset, verify
from bhive_mltf.data.layouts.lz4_frame import FrameReader, SeekPoints
from bhive_mltf.errors import CorruptFileError, DataError
from tests.helpers.building import build, same, small_config, write_hand_made

N = 40
ROW = 3 + 5 * 3 + 2 * 1 + 1 + 3 + 1


def row_by_hand(i, first_track, first_vertex, weight):
    """Jet i of the hand-made file as upstream lays it out: global, cpf, vtx, process, truths, weight."""
    pt = np.float32(20 + i)
    row = [pt, np.float32(0.1 * (i % 20) - 1), i]
    for k in range(5):
        number = first_track + k
        logrel = np.float32(np.log(np.float32(1 + number) / pt))
        row += [1 + number, -1 - number, logrel] if k < i % 4 else [0, 0, 0]
    row += [0.5 + first_vertex + k if k < i % 3 else 0 for k in range(2)]
    return [*row, 0, *(i % 3 == k for k in range(3)), weight]


def rows_by_hand(n=N, weight=0.25):
    tracks = np.cumsum([0, *(i % 4 for i in range(n))])
    vertices = np.cumsum([0, *(i % 3 for i in range(n))])
    return np.array([row_by_hand(i, tracks[i], vertices[i], weight) for i in range(n)], np.float32)


def content_by_hand(rows, kind="f"):
    """The content of a file, packed number by number."""
    numbers = [len(rows), rows.shape[1], *rows.reshape(-1).tolist()]
    return b"".join(struct.pack(f"<{kind}", number) for number in numbers)


def write_foreign(directory, pieces, sizes=None, kind="f", **frame):
    """A directory as upstream writes it."""
    directory.mkdir()
    names = []
    for k, rows in enumerate(pieces):
        names.append(str(directory / f"file_{k}.lz4"))
        (directory / f"file_{k}.lz4").write_bytes(lz4.frame.compress(content_by_hand(rows, kind), **frame))
    (directory / "processed_files.txt").write_text("\n".join(names))
    account(directory, sizes or [len(r) for r in pieces], [float(rows[:, -1].sum()) for rows in pieces])
    np.save(directory / "histogram.npy", np.ones((3, 4, 3), np.float32))
    return directory


def account(directory, sizes, sums=(1.0,)):
    """Upstream's weights.json."""
    (directory / "weights.json").write_text(f'{{"chunk_size": {sizes}, "sum_weight": {list(sums)}}}')


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path, dataset="LZ4Dataset")


def test_our_content_equals_a_file_packed_by_hand(config, tmp_path):
    dataset = build(config, [write_hand_made(tmp_path / "TT.root", N)], tmp_path / "set", chunk_size=25)
    by_hand = rows_by_hand()
    order = dataset.index.entry
    by_hand[:, -1] = dataset.index.weight[np.argsort(order)]
    for k, jets in enumerate((order[:25], order[25:])):
        content = lz4.frame.decompress((tmp_path / "set" / f"file_{k}.lz4").read_bytes())
        assert content == content_by_hand(by_hand[jets])
        ids = np.load(tmp_path / "set" / f"file_{k}.ids.npy")
        assert (ids.dtype, ids.tolist()) == (np.int64, [[0, entry] for entry in jets])


def test_both_layouts_hold_the_same_jets(config, tmp_path):
    paths = [write_hand_made(tmp_path / f"TT_{i}.root", 60 + i) for i in range(2)]
    lz4_set = build(config, paths, tmp_path / "lz4", chunk_size=50)
    arrow = build(config.model_copy(update={"dataset": "ArrowDataset"}), paths, tmp_path / "arrow", chunk_size=33)
    assert lz4_set.manifest.digest == arrow.manifest.digest
    for bounds in ((0, 121), (45, 70), (3, 4)):
        a, b = lz4_set.read(*bounds), arrow.read(*bounds)
        assert same(a, b)
        np.testing.assert_array_equal(a.jet_id, b.jet_id)


def test_a_foreign_dataset_opens(config, tmp_path):
    rows = rows_by_hand()
    directory = write_foreign(tmp_path / "set", [rows[:30], rows[30:]])
    dataset = open_dataset(directory, config)
    manifest = dataset.manifest
    assert (manifest.derived, manifest.jet_ids, manifest.n_jets) == (True, False, N)
    assert dataset.shard_edges.tolist() == [0, 30, 40]
    assert [shard.sum_weight for shard in manifest.shards] == [7.5, 2.5]
    block = dataset.read(0, N)
    assert block.jet_id.tolist() == [[int(i >= 30), i % 30] for i in range(N)]
    assert block.counts["cpf"].tolist() == [i % 4 for i in range(N)]
    assert block.features["cpf"][:, 0].tolist() == [float(1 + i) for i in range(block.counts["cpf"].sum())]
    np.testing.assert_array_equal(block.kinematics, rows[:, :2])
    np.testing.assert_array_equal(block.truth, rows[:, -4:-1] == 1)
    assert dataset.index.weight.tolist() == [0.25] * N
    verify(dataset)


def test_foreign_jets_equal_ours(config, tmp_path):
    ours = build(config, [write_hand_made(tmp_path / "TT.root", N)], tmp_path / "ours")
    rows = rows_by_hand()[ours.index.entry]
    rows[:, -1] = ours.index.weight
    foreign = open_dataset(write_foreign(tmp_path / "set", [rows]), config)
    assert same(foreign.read(0, N), ours.read(0, N))


def test_the_manifest_is_derived_once(config, tmp_path, monkeypatch):
    directory = write_foreign(tmp_path / "set", [rows_by_hand()])
    first = open_dataset(directory, config)
    monkeypatch.setattr(reading, "derive", None)
    assert open_dataset(directory, config).manifest == first.manifest


def test_one_number_as_chunk_size_is_accepted(config, tmp_path):
    rows = rows_by_hand()
    dataset = open_dataset(write_foreign(tmp_path / "set", [rows[:30], rows[30:]], sizes=[30]), config)
    assert [shard.rows for shard in dataset.manifest.shards] == [30, 10]


def test_a_read_only_directory(config, tmp_path, monkeypatch):
    directory = write_foreign(tmp_path / "set", [rows_by_hand()])
    before = sorted(directory.iterdir())
    monkeypatch.setattr(reading, "_writable", lambda path: path != directory)
    with pytest.raises(DataError, match="none can be written there"):
        open_dataset(directory, config)
    dataset = open_dataset(directory, config, tmp_path / "side")
    assert sorted(directory.iterdir()) == before
    assert (tmp_path / "side" / "manifest.json").exists()
    monkeypatch.setattr(reading, "derive", None)
    again = open_dataset(directory, config, tmp_path / "side")
    assert same(again.read(0, N), dataset.read(0, N))


def test_another_config_derives_anew(config, tmp_path):
    directory = write_foreign(tmp_path / "set", [rows_by_hand()])
    open_dataset(directory, config)
    other = small_config(tmp_path / "other", dataset="LZ4Dataset", bins_pt=[10, 500])
    assert open_dataset(directory, other).manifest.config_digest == other.dataset_digest


def test_changed_files_derive_anew(config, tmp_path):
    directory = write_foreign(tmp_path / "set", [rows_by_hand()])
    open_dataset(directory, config)
    (directory / "file_0.lz4").write_bytes(lz4.frame.compress(content_by_hand(rows_by_hand(12))))
    account(directory, [12])
    assert len(open_dataset(directory, config)) == 12


def test_shards_elsewhere(config, tmp_path):
    directory = write_foreign(tmp_path / "set", [rows_by_hand()])
    (tmp_path / "far").mkdir()
    (directory / "file_0.lz4").rename(tmp_path / "far" / "file_0.lz4")
    (directory / "processed_files.txt").write_text(str(tmp_path / "far" / "file_0.lz4"))
    assert len(open_dataset(directory, config).read(0, N)) == N


def test_other_columns_than_the_config(tmp_path):
    config = small_config(tmp_path, dataset="LZ4Dataset", n_vtx_candidates=4)
    directory = write_foreign(tmp_path / "set", [rows_by_hand()])
    message = (
        f"has {ROW} columns, the config describes {ROW + 2} .global 1 x 3, cpf 5 x 3, vtx 4 x 1, process 1, truths 3"
    )
    with pytest.raises(CorruptFileError, match=message):
        open_dataset(directory, config)
    assert not (directory / "manifest.json").exists()


def test_the_other_precision_is_recognised(tmp_path, config):
    directory = write_foreign(tmp_path / "set", [rows_by_hand()], kind="e")
    with pytest.raises(CorruptFileError, match="holds float16 numbers, the config says float32: set `data_precision"):
        open_dataset(directory, config)


def test_w09_a_float16_header_cannot_count(tmp_path):
    config = small_config(tmp_path, dataset="LZ4Dataset", data_precision="float16")
    n = 70_001
    rows = np.zeros((n, ROW), "<f2")
    rows[:, 0], rows[:, -4], rows[:, -1] = 50, 1, 1
    with np.errstate(over="ignore"):
        header = np.array([n, ROW], "<f4").astype("<f2")
    assert np.isinf(header[0])
    directory = write_foreign(tmp_path / "set", [rows_by_hand(3)])
    (directory / "file_0.lz4").write_bytes(lz4.frame.compress(header.tobytes() + rows.tobytes()))
    account(directory, [n])
    dataset = open_dataset(directory, config)
    assert len(dataset) == n
    assert dataset.read(n - 5, n).kinematics[:, 0].tolist() == [50.0] * 5


def test_rows_that_do_not_add_up(config, tmp_path):
    directory = write_foreign(tmp_path / "set", [rows_by_hand()])
    (directory / "file_0.lz4").write_bytes(lz4.frame.compress(content_by_hand(rows_by_hand())[: -ROW * 4]))
    with pytest.raises(CorruptFileError, match="announces 40 jets"):
        open_dataset(directory, config)


@pytest.mark.parametrize("damage", ["cut", "bit", "magic", "header", "none"])
def test_damaged_frames(config, tmp_path, damage):
    directory = write_foreign(tmp_path / "set", [rows_by_hand()], content_checksum=True)
    path = directory / "file_0.lz4"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-300]
    else:
        content[{"bit": 300, "magic": 0, "header": 4, "none": 0}[damage]] ^= 1
    path.write_bytes(b"" if damage == "none" else content)
    with pytest.raises(CorruptFileError, match="file_0.lz4"):
        open_dataset(directory, config)


FRAMES = st.fixed_dictionaries(
    {
        "block_linked": st.booleans(),
        "block_size": st.sampled_from([lz4.frame.BLOCKSIZE_MAX64KB, lz4.frame.BLOCKSIZE_MAX256KB]),
        "block_checksum": st.booleans(),
        "content_checksum": st.booleans(),
        "store_size": st.booleans(),
    }
)


@settings(max_examples=20)
@given(frame=FRAMES, spacing=st.integers(1, 500_000), seed=st.integers(0, 100), data=st.data())
def test_any_range_of_any_frame(tmp_path_factory, frame, spacing, seed, data):
    rng = np.random.default_rng(seed)
    # Half noise, half repetition: some blocks are stored as they are, some refer far back.
    content = rng.bytes(150_000) + rng.bytes(5_000) * 60 + rng.bytes(70_000)
    path = tmp_path_factory.mktemp("frame") / "x.lz4"
    path.write_bytes(lz4.frame.compress(content, **frame))
    reader = FrameReader(path)
    points = SeekPoints(reader.header.linked, spacing)
    pieces = []
    for block in reader.blocks():
        points.add(block)
        pieces.append(block.content)
    assert b"".join(pieces) == content
    reader = FrameReader(path, points.array())
    for _ in range(3):
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        assert reader.read(start, stop) == content[start:stop]
    with pytest.raises(CorruptFileError, match="ends before"):
        reader.read(0, len(content) + 1)


def test_reading_starts_near_by(tmp_path):
    content = np.random.default_rng(1).bytes(4 << 20)
    path = tmp_path / "x.lz4"
    path.write_bytes(lz4.frame.compress(content, block_size=lz4.frame.BLOCKSIZE_MAX64KB))
    reader = FrameReader(path)
    points = SeekPoints(reader.header.linked, 1 << 20)
    for block in reader.blocks():
        points.add(block)
    reader = FrameReader(path, points.array())
    first = next(reader._blocks_from(reader._before(3 << 20)))
    assert (3 << 20) - first.offset <= 1 << 20
    assert first.offset > 0


def test_w26_a_large_foreign_file_is_never_held_whole(config, tmp_path, monkeypatch):
    rows = np.tile(rows_by_hand(), (500, 1))
    directory = write_foreign(tmp_path / "set", [rows_by_hand()])
    (directory / "file_0.lz4").write_bytes(lz4.frame.compress(struct.pack("<ff", len(rows), ROW) + rows.tobytes()))
    account(directory, [len(rows)])
    sizes = []
    block = reading.LZ4Shard.block
    monkeypatch.setattr(
        reading.LZ4Shard, "block", lambda self, rows, *a: sizes.append(len(rows)) or block(self, rows, *a)
    )
    dataset = open_dataset(directory, config)
    assert sum(sizes) == len(rows)
    assert max(sizes) == set_writer.BATCH_JETS
    np.testing.assert_array_equal(dataset.read(12_345, 12_400).kinematics, rows[12_345:12_400, :2])


def test_header_checksum_is_that_of_the_format():
    frame = lz4.frame.compress(b"x")
    assert frame[14] == (xxhash.xxh32_intdigest(frame[4:14]) >> 8) & 0xFF


def test_the_files_beside_the_shards_are_upstreams_too(config, tmp_path):
    dataset = build(config, [write_hand_made(tmp_path / "TT.root", N)], tmp_path / "set", chunk_size=25)
    directory = tmp_path / "set"
    by_hand = rows_by_hand()[dataset.index.entry]
    by_hand[:, -1] = dataset.index.weight
    files = [str(directory / f"file_{k}.lz4") for k in range(2)]
    assert (directory / "processed_files.txt").read_text() == "\n".join(files)
    account_of = json.loads((directory / "weights.json").read_text())
    assert account_of["chunk_size"] == [25, 15]
    assert account_of["sum_weight"] == [
        pytest.approx(float(by_hand[part, -1].sum())) for part in (slice(25), slice(25, N))
    ]
    histogram = np.load(directory / "histogram.npy")
    counts = np.zeros((3, 4, 3), np.float32)
    for row in by_hand:
        counts[
            np.argmax(row[-4:-1]), np.digitize(row[0], config.bins_pt) - 1, np.digitize(row[1], config.bins_eta) - 1
        ] += 1
    assert histogram.dtype == np.float32
    np.testing.assert_array_equal(histogram, counts)


def test_all_groups_stand_in_upstreams_order(tmp_path):
    """Global, cpf, npf, vtx, lt, each with its custom columns last, candidates one after the other."""
    config = small_config(
        tmp_path,
        dataset="LZ4Dataset",
        global_custom_features=[{"twice": "npv * 2"}],
        n_npf_candidates=2,
        npf_candidates=["Cpfcan_BtagPf_trackSip2dSig"],
        npf_custom_features=[{"n_minus": "-Cpfcan_pt"}],
        vtx_custom_features=[{"v2": "sv_mass + 1"}],
        n_lt_candidates=3,
        lt_candidates=["Cpfcan_pt"],
    )
    build(config, [write_hand_made(tmp_path / "TT.root", 6)], tmp_path / "set")
    content = np.frombuffer(lz4.frame.decompress((tmp_path / "set" / "file_0.lz4").read_bytes()), "<f4")
    assert content[:2].tolist() == [6, 4 + 5 * 3 + 2 * 2 + 2 * 2 + 3 * 1 + 1 + 3 + 1]
    row = next(row for row in content[2:].reshape(6, -1).tolist() if row[2] == 5)  # jet 5: 1 track, 2 vertices
    pt, track = 25.0, 1.0 + sum(i % 4 for i in range(5))
    sv = 0.5 + sum(i % 3 for i in range(5))
    assert row[:1] + row[2:4] == [pt, 5, 10]
    assert row[4:6] == [track, -track]
    assert row[6] == pytest.approx(np.log(track / pt), rel=1e-6)
    assert row[7:19] == [0] * 12
    assert row[19:23] == [-track, -track, 0, 0]
    assert row[23:27] == [sv, sv + 1, sv + 1, sv + 2]
    assert row[27:30] == [track, 0, 0]
    assert row[30:34] == [0, 0, 0, 1]
