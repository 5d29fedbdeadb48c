"""Arrow shards: planes, precision, compression and checksums; the loader over real sets."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.data.build.construct import check_parameters
from bhive_mltf.data.dataset import Dataset, open_dataset
from bhive_mltf.data.layouts import arrow_reader
from bhive_mltf.data.layouts.arrow_format import checksum
from bhive_mltf.data.layouts.column_planes import planes_of
from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.data.loader.windows import ArrowWindows
from bhive_mltf.errors import ConfigError, CorruptFileError, DataError
from bhive_mltf.interface import GroupInput, ModelInputs
from tests.helpers.building import build, same, small_config, write_hand_made

N_JETS = 900
ORDER = {"cpf": ["Cpfcan_logrel", "Cpfcan_BtagPf_trackSip2dSig"]}
VECTORS = {"cpf": {"kind": "ptetaphie", "columns": ["Cpfcan_pt", "m", "n", "e"]}}
CUSTOM = [
    {"Cpfcan_logrel": "log(Cpfcan_pt / jet_pt)"},
    {"m": "Cpfcan_pt / 3"},
    {"n": "Cpfcan_pt * 1.001"},
    {"e": "Cpfcan_pt * 1.37"},
]
CLASSES = (("b", ("isB",)), ("c", ("isC",)), ("l", ("isUD",)))
VARIANTS = {
    "plain": {},
    "order": {"storage_order": ORDER},
    "lz4": {"compression": "lz4"},
    "zstd order": {"compression": "zstd", "storage_order": ORDER},
    "upstream": {"dataset": "LZ4Dataset"},
    "half": {"data_precision": "float16"},
    "half lz4 order": {"data_precision": "float16", "compression": "lz4", "storage_order": ORDER},
}


def inputs(padding="longest", cpf=4):
    groups = (
        GroupInput("global", ("npv", "jet_pt"), 1),
        GroupInput(
            "cpf",
            ("Cpfcan_logrel", "Cpfcan_BtagPf_trackSip2dSig"),
            cpf,
            ("Cpfcan_pt", "m", "n", "e"),
            "ptetaphie",
        ),
        GroupInput("vtx", ("sv_mass",), 2),
    )
    return ModelInputs(CLASSES, groups, padding)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    path = write_hand_made(folder / "TT_0.root", N_JETS)
    found = {}
    for name, changes in VARIANTS.items():
        config = small_config(folder / name, cpf_custom_features=CUSTOM, four_vectors=VECTORS, **changes)
        found[name] = build(config, [path], folder / name / "set", chunk_size=350)
    return found


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    before, order.BLOCK = order.BLOCK, 32
    yield
    order.BLOCK = before


def many(folder):
    """A file of 5000 jets, all accepted."""
    return write_hand_made(folder / "TT.root", 5000, jet_pt=(20 + np.arange(5000) % 1900).astype(np.float32))


def batches(dataset, model=None, jets=None, epoch=0, **options):
    jets = range(len(dataset)) if jets is None else jets
    options = {"mode": "training", "batch_size": 50, "seed": 1, "weighted": False, **options}
    loader = BatchLoader(dataset, jets, model or inputs(), **options)
    try:
        return [[t.clone() for t in tensors(batch)] for batch in loader.epoch(epoch)]
    finally:
        loader.close()


def tensors(batch):
    groups = [t for g in batch.groups.values() for t in (g.features, g.mask, g.four_vectors) if t is not None]
    return [*groups, batch.target, batch.weight, batch.jet_id, batch.process, batch.kinematics]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert all(map(torch.equal, a, b))


def test_the_digest_and_the_jets_do_not_depend_on_the_storage(sets):
    whole = sets["plain"].read(0, N_JETS)
    for name in ("order", "lz4", "zstd order", "upstream"):
        assert sets[name].manifest.digest == sets["plain"].manifest.digest
        assert same(sets[name].read(0, N_JETS), whole)
    half = sets["half"].read(0, N_JETS)
    assert sets["half lz4 order"].manifest.digest == sets["half"].manifest.digest != sets["plain"].manifest.digest
    assert same(sets["half lz4 order"].read(0, N_JETS), half)


def test_float16_leaves_four_vectors_and_jets_alone(sets):
    whole, half = sets["plain"].read(0, N_JETS), sets["half"].read(0, N_JETS)
    columns = sets["plain"].schema.group("cpf").columns
    for i, name in enumerate(columns):
        expected = whole.features["cpf"][:, i]
        if name not in VECTORS["cpf"]["columns"]:
            expected = expected.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(half.features["cpf"][:, i], expected)
    np.testing.assert_array_equal(half.features["global"], whole.features["global"])
    np.testing.assert_array_equal(half.kinematics, whole.kinematics)
    np.testing.assert_array_equal(half.weight, whole.weight)
    kinds = {p.positions: p.half for p in planes_of(sets["half"].manifest)["cpf"]}
    assert kinds == {(1, 2): True, (0, 3, 4, 5): False}


@settings(max_examples=30)
@given(bounds=st.tuples(st.integers(0, N_JETS), st.integers(0, N_JETS)).map(sorted), name=st.sampled_from([*VARIANTS]))
def test_any_range_and_columns(sets, bounds, name):
    dataset = sets[name]
    wanted = {"cpf": ("e", "Cpfcan_BtagPf_trackSip2dSig", "Cpfcan_logrel"), "vtx": ()}
    block = dataset.read(*bounds, columns=wanted)
    whole = dataset.read(0, N_JETS).take(np.arange(*bounds))
    at = [dataset.schema.group("cpf").columns.index(c) for c in wanted["cpf"]]
    np.testing.assert_array_equal(block.features["cpf"], whole.features["cpf"][:, at])
    np.testing.assert_array_equal(block.counts["vtx"], whole.counts["vtx"])


@pytest.mark.long
@settings(max_examples=12)
@given(
    batch_size=st.integers(1, 400),
    start=st.integers(0, 200),
    weighted=st.booleans(),
    mode=st.sampled_from(["training", "validation", "inference"]),
    padding=st.sampled_from(["longest", "configured"]),
    cpf=st.integers(1, 6),
)
def test_all_storages_give_the_same_batches(sets, batch_size, start, weighted, mode, padding, cpf):
    options = {"batch_size": batch_size, "weighted": weighted, "mode": mode, "jets": range(start, N_JETS)}
    try:
        reference = batches(sets["plain"], inputs(padding, cpf), **options)
    except DataError:  # fewer sampled jets than a batch
        return
    for name in ("order", "lz4", "zstd order", "upstream"):
        assert_same(batches(sets[name], inputs(padding, cpf), **options), reference)


@pytest.mark.parametrize("name", ["order", "half lz4 order", "upstream"])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_workers_give_the_same_batches(sets, name, n_threads):
    for options in ({}, {"weighted": True, "batch_size": 300}, {"mode": "inference", "batch_size": 333}):
        assert_same(batches(sets[name], n_threads=n_threads, **options), batches(sets[name], **options))


@pytest.mark.long
def test_workers_can_be_spawned(sets):
    order.BLOCK = 2048  # a spawned process does not see the patch of this module
    try:
        for name in ("order", "lz4"):
            spawned = batches(sets[name], n_threads=1, start_method="spawn")
            assert_same(spawned, batches(sets[name]))
    finally:
        order.BLOCK = 32


def test_only_what_must_be_decoded_is(sets):
    kinds = {}
    for name, dataset in sets.items():
        loader = BatchLoader(dataset, range(N_JETS), inputs(), mode="training", batch_size=50, seed=1, weighted=False)
        arrow = ArrowWindows.of(loader._stream._view)
        kinds[name] = "rows" if arrow is None else "compressed" if arrow.compressed else "mapped"
    assert kinds == {
        "plain": "mapped",
        "order": "mapped",
        "lz4": "compressed",
        "zstd order": "compressed",
        "upstream": "rows",
        "half": "mapped",
        "half lz4 order": "compressed",
    }


def test_batches_of_a_shard_end_where_the_loaders_blocks_do(tmp_path):
    config = small_config(tmp_path)
    dataset = build(config, [many(tmp_path)], tmp_path / "set", chunk_size=1700)
    edges = [
        low + edge
        for number, low in enumerate(dataset.shard_edges[:-1].tolist())
        for edge in dataset.arrow_shard(number).edges[1:].tolist()
    ]
    assert edges == [1700, 2048, 3400, 4096, 5000]


def flipped(dataset, directory, byte, bit=0):
    """The set with one bit of its second shard flipped; the size stays."""
    path = directory / "file_1.arrow"
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    return Dataset(directory, dataset.manifest)


@pytest.mark.parametrize("name", ["plain", "half lz4 order"])
def test_a_flipped_bit_is_found_where_it_is_read(sets, name, tmp_path, monkeypatch):
    monkeypatch.setattr(order, "BLOCK", 2048)
    original = sets[name]
    reference = batches(original)
    content = (original.directory / "file_1.arrow").read_bytes()
    found = 0
    for byte in np.linspace(0, len(content) - 1, 60).astype(int).tolist():
        for shard in original.directory.iterdir():
            (tmp_path / shard.name).write_bytes(shard.read_bytes())
        damaged = flipped(original, tmp_path, byte, byte % 8)
        try:
            # What no column of the model touches may be damaged unseen; what is read must be right.
            assert_same(batches(damaged), reference)
        except CorruptFileError as error:
            assert "file_1.arrow" in str(error)
            found += 1
    assert found > 20


def test_the_damaged_block_is_named(tmp_path):
    config = small_config(tmp_path)
    dataset = build(config, [many(tmp_path)], tmp_path / "set", chunk_size=10_000)
    offsets, flat = dataset.arrow_shard(0).raw(1, {"cpf"})["cpf"]
    place = dataset.arrow_shard(0).address(flat) + 1000
    path = dataset.path(0)
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    damaged = Dataset(dataset.directory, dataset.manifest)
    assert len(damaged.read(0, 2048)) == 2048
    with pytest.raises(
        CorruptFileError, match=r"file_0.arrow' has changed .* column cpf of block 1 \(rows 2048 to 4095"
    ):
        damaged.read(2048, 2049)
    # A model that reads other columns does not notice, and need not.
    assert len(damaged.read(2048, 4096, {"vtx": ["sv_mass"]})) == 2048


def test_a_block_is_checked_once(sets, monkeypatch):
    calls = []
    dataset = Dataset(sets["plain"].directory, sets["plain"].manifest)
    monkeypatch.setattr(arrow_reader, "checksum", lambda column: calls.append(1) or checksum(column))
    loader = BatchLoader(dataset, range(N_JETS), inputs(), mode="training", batch_size=50, seed=1, weighted=False)
    for _ in loader.epoch(0):
        pass
    first = len(calls)
    for epoch in (1, 2):
        for _ in loader.epoch(epoch):
            pass
    assert len(calls) == first > 0


def test_a_shard_without_its_checksums_is_refused(sets, tmp_path):
    reader = pa.ipc.open_file(pa.memory_map(str(sets["plain"].path(0))))
    with pa.OSFile(str(tmp_path / "bare.arrow"), "wb") as sink, pa.ipc.new_file(sink, reader.schema) as writer:
        writer.write_batch(reader.get_batch(0))
    with pytest.raises(CorruptFileError, match="bare.arrow' has lost checksums"):
        arrow_reader.ArrowShard(tmp_path / "bare.arrow", sets["plain"].schema)


def test_options_that_cannot_be(tmp_path):
    with pytest.raises(DataError, match="`compression: zstd` is for Arrow shards"):
        check_parameters(small_config(tmp_path, dataset="LZ4Dataset", compression="zstd"), 100)
    for value, message in [
        ({"npf": ["x"]}, "npf"),
        ({"cpf": ["Cpfcan_p"]}, "Cpfcan_p"),
        ({"cpf": ["Cpfcan_pt", "Cpfcan_pt"]}, "more than once"),
        ({"cpf": "Cpfcan_pt"}, "not a list"),
    ]:
        with pytest.raises(ConfigError, match=message):
            small_config(tmp_path, storage_order=value)
    with pytest.raises(ConfigError, match="compression"):
        small_config(tmp_path, compression="gzip")


def test_how_it_is_stored_does_not_change_the_dataset_digest(tmp_path):
    plain, *others = (
        small_config(tmp_path / str(i), **changes)
        for i, changes in enumerate([{}, {"compression": "lz4"}, {"storage_order": {"cpf": ["Cpfcan_pt"]}}])
    )
    assert {config.dataset_digest for config in others} == {plain.dataset_digest}
    assert plain.digest not in {config.digest for config in others}
    half = [
        small_config(
            tmp_path / f"half{i}", data_precision="float16", cpf_custom_features=CUSTOM,
            four_vectors={"cpf": {"kind": "ptetaphie", "columns": columns}},
        )
        for i, columns in enumerate([VECTORS["cpf"]["columns"], ["Cpfcan_pt", "m", "n", "Cpfcan_logrel"]])
    ]  # fmt: skip
    assert half[0].dataset_digest != half[1].dataset_digest


def test_a_moved_set_opens(sets, tmp_path):
    config = small_config(tmp_path, cpf_custom_features=CUSTOM, four_vectors=VECTORS, compression="lz4")
    assert len(open_dataset(sets["lz4"].directory, config)) == N_JETS
