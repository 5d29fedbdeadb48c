"""The reader of ROOT files: what uproot reads, in bounded chunks, and what is said of files that cannot be read."""

import errno
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
import uproot.source.object

from bhive_mltf.data.ntuples import branch_types
from bhive_mltf.data.ntuples.root_reader import open_tree
from bhive_mltf.errors import CorruptFileError, DataError, MissingBranchError, MissingTreeError
from bhive_mltf.testing.jets import write_btag, write_hlt, write_jetclass
from bhive_mltf.testing.root_files import write_tree
from tests.helpers.building import SMALL, hand_made

# Made by ROOT 6.40 (make.py beside them).
FILES = Path(__file__).parent / "files"
TREE = "deepntuplizer/tree"
CODECS = {
    "none": None,
    "zlib": uproot.ZLIB(1),
    "lz4": uproot.LZ4(1),
    "zstd": uproot.ZSTD(1),
    "lzma": uproot.LZMA(1),
}
TYPES = (np.bool_, np.int8, np.uint16, np.int32, np.int64, np.float32, np.float64)


def by_uproot(path, treename, names):
    with uproot.open(path) as file:
        return file[treename].arrays(names, library="ak", how=dict)


def assert_equal(chunk, arrays):
    """The chunk holds what uproot reads, types included."""
    assert chunk.scalars.keys() | chunk.jagged.keys() == arrays.keys()
    for name, values in chunk.scalars.items():
        expected = np.asarray(arrays[name].layout.data)[chunk.start : chunk.stop]
        assert values.dtype == expected.dtype
        assert values.tobytes() == expected.tobytes()
    for name, lists in chunk.jagged.items():
        layout = arrays[name][chunk.start : chunk.stop].layout.to_ListOffsetArray64(True)
        offsets = np.asarray(layout.offsets.data)
        expected = np.asarray(layout.content.data)[: offsets[-1]]
        np.testing.assert_array_equal(lists.offsets, offsets)
        assert lists.values.dtype == expected.dtype
        assert lists.values.tobytes() == expected.tobytes()


def check_file(path, treename, names, steps):
    arrays = by_uproot(path, treename, names)
    with open_tree(str(path), treename, names) as tree:
        for step in steps:
            chunks = list(tree.chunks(step))
            assert [chunk.start for chunk in chunks] == list(range(0, tree.n_entries, step))
            assert [chunk.start for chunk in chunks[1:]] == [chunk.stop for chunk in chunks[:-1]]
            assert chunks[-1].stop == tree.n_entries
            for chunk in chunks:
                assert_equal(chunk, arrays)


@pytest.mark.parametrize("write", [write_btag, write_jetclass, write_hlt])
def test_equal_to_uproot(tmp_path, write):
    path = write(tmp_path / "jets.root", 2300, 3)
    with uproot.open(path) as file:
        [treename] = [key.split(";")[0] for key, kind in file.classnames().items() if kind == "TTree"]
        names = [name for name in file[treename].keys(recursive=True) if "/" not in name]
    check_file(path, treename, names, (5000, 1000, 777))


def write_all_types(path, compression):
    """Numbers and lists of every type, in baskets of 100, 1 and 60 entries."""
    rng = np.random.default_rng(1)
    with uproot.recreate(path, compression=compression) as file:
        types = {f"x_{np.dtype(kind).name}": kind for kind in TYPES}
        lists = {f"l_{np.dtype(kind).name}": f"var * {np.dtype(kind).name}" for kind in TYPES}
        tree = file.mktree("tree", {**types, **lists})
        for n in (100, 1, 60):
            counts = rng.integers(0, 4, n)
            data = {name: (rng.random(n) * 100).astype(kind) for name, kind in types.items()}
            for (name, _), kind in zip(lists.items(), TYPES, strict=True):
                flat = (rng.random(counts.sum()) * 100).astype(kind)
                data[name] = ak.unflatten(flat, counts)
            tree.extend(data)
    return path, [*types, *lists]


@pytest.mark.parametrize("codec", CODECS)
def test_any_codec_and_type(tmp_path, codec):
    path, names = write_all_types(tmp_path / "types.root", CODECS[codec])
    check_file(path, "tree", names, (1, 60, 100, 101, 161, 1000))


def test_part_of_a_file(tmp_path):
    path, names = write_all_types(tmp_path / "types.root", None)
    arrays = by_uproot(path, "tree", names)
    with open_tree(str(path), "tree", names) as tree:
        chunks = list(tree.chunks(40, 60, 150))
        assert [(chunk.start, chunk.stop) for chunk in chunks] == [(60, 100), (100, 140), (140, 150)]
        for chunk in chunks:
            assert_equal(chunk, arrays)


def test_each_basket_is_decompressed_once(tmp_path, monkeypatch):
    path = write_tree(tmp_path / "jets.root", SMALL["treename"], hand_made(1000), basket_jets=100)
    calls = []
    read = uproot.models.TBasket.Model_TBasket.read.__func__

    def counted(cls, *arguments, **options):
        calls.append(1)
        return read(cls, *arguments, **options)

    monkeypatch.setattr(uproot.models.TBasket.Model_TBasket, "read", classmethod(counted))
    with open_tree(str(path), SMALL["treename"], ["jet_pt", "Cpfcan_pt"]) as tree:
        assert len(list(tree.chunks(37))) == 28
    assert len(calls) == 20


def test_chunks_are_bounded_in_jets_and_bytes(tmp_path):
    path = write_tree(tmp_path / "jets.root", SMALL["treename"], hand_made(1000), basket_jets=100)
    with open_tree(str(path), SMALL["treename"], ["jet_pt", "npv"]) as tree:
        assert tree.step(250, 1 << 40) == 250
        assert 80 < tree.step(250, 1000) <= 125
        assert tree.step(250, 1) == 1


@pytest.mark.parametrize("codec", ["zlib", "lz4", "zstd"])
def test_flipped_bits_never_change_the_number_of_jets(tmp_path, codec):
    """Everywhere in the file; ZLIB and LZ4 see every flip in compressed jets, ROOT writes no checksum with ZSTD."""
    path = tmp_path / "TT.root"
    n_jets = 4000
    rng = np.random.default_rng(5)
    # Few different values, so that all codecs make the baskets smaller; one that they do not is stored as it is.
    jets = {name: rng.integers(0, 3, n_jets).astype(np.int32) for name in ("a", "b")}
    with uproot.recreate(path, compression=CODECS[codec]) as file:
        file.mktree("tree", {name: values.dtype for name, values in jets.items()}).extend(jets)
    content = path.read_bytes()
    detected = changed = 0
    for bit in rng.integers(0, 8 * len(content), 80):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(broken)
        try:
            with open_tree(str(path), "tree", list(jets)) as tree:
                [chunk] = tree.chunks(10_000)
        except (CorruptFileError, MissingBranchError, MissingTreeError):
            detected += 1
            continue
        assert {len(values) for values in chunk.scalars.values()} == {n_jets}
        changed += any(chunk.scalars[name].tobytes() != values.tobytes() for name, values in jets.items())
    assert detected + changed > 10
    assert changed == 0 or codec == "zstd"


def read_all(path, treename, names):
    with open_tree(str(path), treename, names) as tree:
        return list(tree.chunks(5))


def lists_of(path, name, step=7):
    with open_tree(str(path), TREE, [name]) as tree:
        assert tree.jagged == {name}
        parts = [chunk.jagged[name] for chunk in tree.chunks(step)]
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    return counts, np.concatenate([part.values for part in parts])


def numbers_of(path, name, step=7):
    with open_tree(str(path), TREE, [name]) as tree:
        assert not tree.jagged
        return np.concatenate([chunk.scalars[name] for chunk in tree.chunks(step)])


JET = np.arange(30)


# Half a step of the stored numbers, by ROOT's rules.
@pytest.mark.parametrize(
    ("name", "kind", "tolerance"),
    [
        ("Cpfcan_pt", np.float32, 100 / 2**16 / 2),  # f[0,100,16]
        ("Cpfcan_BtagPf_trackSip2dSig", np.float64, 1e-7),  # d[-100,100]
        ("sv_mass", np.float64, 2**-8),  # d[0,0,10]
    ],
)
def test_f09_packed_lists(name, kind, tolerance):
    counts, values = lists_of(FILES / "packed.root", name)
    expected = JET % (3 if name == "sv_mass" else 4)
    np.testing.assert_array_equal(counts, expected)
    within = np.concatenate([np.arange(n) for n in expected])
    assert values.dtype == kind
    np.testing.assert_allclose(values, within + 1 + np.repeat(JET, expected) / 8, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("name", "kind", "tolerance"),
    [
        ("x_f", np.float32, 2**-9),  # f[0,0,10]
        ("x_fr", np.float32, 20 / 2**16),  # f[-10,10,16]
        ("x_d", np.float64, 1e-6),  # d
        ("x_dr", np.float64, 4 * np.pi / 2**20),  # d[-twopi,2*pi,20]
        ("x_d20", np.float64, 1e-6),  # d[0,0,20]: a float
    ],
)
def test_f09_packed_numbers(name, kind, tolerance):
    values = numbers_of(FILES / "packed.root", name)
    assert values.dtype == kind
    np.testing.assert_allclose(values, JET / 7 - 2, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["v_float", "v_Double32_t", "v_Float16_t"])
def test_f09_vectors_of_packed_numbers(name):
    counts, values = lists_of(FILES / "packed.root", name)
    np.testing.assert_array_equal(counts, JET % 4)
    within = np.concatenate([np.arange(n) for n in JET % 4])
    np.testing.assert_allclose(values, within + np.repeat(JET, JET % 4) / 4, rtol=2**-12)


@pytest.mark.parametrize("title", ["x[n]/d[0,0,os]", "x/f[f(1),2]", "x/d[0**9,1]"])
def test_f09_a_range_that_is_no_number_is_not_evaluated(title):
    with pytest.raises(ValueError, match="the range of a branch cannot be read"):
        branch_types._range_of(title)


TROUBLE = (errno.ENODEV, errno.EMFILE, errno.ESTALE, errno.ENOMEM, errno.EACCES, errno.ETIMEDOUT)


@pytest.mark.parametrize("number", TROUBLE)
@pytest.mark.parametrize("place", ["__init__", "get"])
def test_f09_trouble_of_the_machine_is_not_a_bad_file(tmp_path, monkeypatch, number, place):
    path = write_tree(tmp_path / "TT.root", SMALL["treename"], hand_made(9))

    def fail(*_):
        raise OSError(number, "what the system says")

    monkeypatch.setattr(uproot.source.object.ObjectResource, place, fail)
    with pytest.raises(DataError, match=r"TT.root' cannot be read: .*, then type the command again") as caught:
        read_all(path, SMALL["treename"], ["jet_pt"])
    assert not isinstance(caught.value, CorruptFileError)
    assert "--skip-bad-files" not in str(caught.value)


@pytest.mark.parametrize("error", [UnboundLocalError("low"), NotImplementedError("later"), TypeError("no such type")])
def test_f09_what_the_reader_does_not_know_is_not_a_bad_file(tmp_path, monkeypatch, error):
    path = write_tree(tmp_path / "TT.root", SMALL["treename"], hand_made(9))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(uproot.AsDtype, "basket_array", fail)
    with pytest.raises(DataError, match=r"uproot .* cannot read '.*TT.root'") as caught:
        read_all(path, SMALL["treename"], ["jet_pt"])
    assert not isinstance(caught.value, CorruptFileError)


def test_f01_a_block_that_cannot_be_read_is_a_bad_file(tmp_path, monkeypatch):
    path = write_tree(tmp_path / "TT.root", SMALL["treename"], hand_made(500), basket_jets=100)
    with uproot.open(path) as file:
        first = int(file[SMALL["treename"]]["jet_pt"].member("fBasketSeek")[2])
    get = uproot.source.object.ObjectResource.get

    def fail(self, start, stop):
        if start <= first < stop:
            raise OSError(errno.EIO, "Input/output error")
        return get(self, start, stop)

    monkeypatch.setattr(uproot.source.object.ObjectResource, "get", fail)
    with pytest.raises(CorruptFileError, match=r"TT.root' cannot be read: Input/output error: .*--skip-bad-files"):
        read_all(path, SMALL["treename"], ["jet_pt"])


@pytest.mark.parametrize(("name", "treename"), [("killed", TREE), ("killed_top", "tree")])
def test_f08_a_file_that_was_not_closed(name, treename):
    """The tree of `killed_top` can be read as far as it was saved: jets would be missing without a word."""
    with pytest.raises(CorruptFileError, match="was not closed by the job that wrote it.*--skip-bad-files"):
        read_all(FILES / f"{name}.root", treename, ["jet_pt"])


NAMES = ["jet_pt", "jet_eta", "npv", "isB", "isC", "isUD"]


@pytest.mark.parametrize(("name", "kind"), [("tntuple", np.float32), ("tntupled", np.float64), ("rntuple", np.float32)])
@pytest.mark.parametrize("step", [7, 100])
def test_f10_other_kinds_of_tree(name, kind, step):
    with open_tree(str(FILES / f"{name}.root"), TREE, NAMES) as tree:
        assert (tree.n_entries, tree.jagged) == (30, frozenset())
        assert tree.step(10, 1 << 30) == 10
        chunks = list(tree.chunks(step))
    pt = np.concatenate([chunk.scalars["jet_pt"] for chunk in chunks])
    assert pt.dtype == kind
    np.testing.assert_array_equal(pt, 20 + JET)
    np.testing.assert_array_equal(np.concatenate([chunk.scalars["isC"] for chunk in chunks]), JET % 3 == 1)


def test_f10_lists_of_an_rntuple():
    counts, values = lists_of(FILES / "rntuple.root", "Cpfcan_pt")
    np.testing.assert_array_equal(counts, JET % 4)
    within = np.concatenate([np.arange(n) for n in JET % 4])
    np.testing.assert_array_equal(values, within + 1 + np.repeat(JET, JET % 4) / 8)


def test_f10_collections_of_an_rntuple_are_no_numbers():
    with pytest.raises(DataError, match="`_collection0` of .*rntuple.root' is of type .*neither a number nor a list"):
        read_all(FILES / "rntuple.root", TREE, ["jet_pt", "_collection0"])


@pytest.mark.parametrize(
    ("name", "treename", "message"),
    [
        ("chain", TREE, "is a TChain, which holds no jets but the names of other files: put those files into the list"),
        ("histogram", TREE, "has a TH1F 'deepntuplizer/tree', which is no tree; its trees: none"),
        ("rntuple", "tree", "has no tree 'tree'; its trees: deepntuplizer/tree: correct the config's `treename`"),
        ("tntuple", "events", "has no tree 'events'; its trees: deepntuplizer/tree"),
    ],
)
def test_f10_what_is_there_instead_of_the_tree(name, treename, message):
    with pytest.raises(MissingTreeError, match=message):
        read_all(FILES / f"{name}.root", treename, ["jet_pt"])
