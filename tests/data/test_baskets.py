"""Baskets read directly: exactly what uproot reads, and errors for what is damaged."""

import struct

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.data.ntuples import baskets, root_reader
from bhive_mltf.data.ntuples.baskets import BranchReader, Layout
from bhive_mltf.data.ntuples.lists import Index, PackedLists
from bhive_mltf.data.ntuples.root_reader import open_tree
from bhive_mltf.errors import CorruptFileError
from bhive_mltf.testing.jets import write_btag, write_hlt, write_jetclass
from bhive_mltf.testing.root_files import Jets, write_tree
from tests.data.building import SMALL, hand_made

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
            chunks = list(tree.chunks(step, 1 << 40))
            assert [chunk.start for chunk in chunks[1:]] == [chunk.stop for chunk in chunks[:-1]]
            assert (chunks[0].start, chunks[-1].stop) == (0, tree.n_entries)
            for chunk in chunks:
                assert_equal(chunk, arrays)
        return tree


@pytest.mark.parametrize("write", [write_btag, write_jetclass, write_hlt])
def test_equal_to_uproot(tmp_path, write):
    path = write(tmp_path / "jets.root", 2300, 3)
    with uproot.open(path) as file:
        [treename] = [key.split(";")[0] for key, kind in file.classnames().items() if kind == "TTree"]
        names = [name for name in file[treename].keys(recursive=True) if "/" not in name]
    tree = check_file(path, treename, names, (5000, 1000, 777))
    assert tree._readers.keys() == set(names)


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
    tree = check_file(path, "tree", names, (1, 60, 100, 101, 161, 1000))
    assert tree._readers.keys() == set(names)


def test_uproot_reads_what_is_not_simple(tmp_path, monkeypatch):
    path = write_tree(tmp_path / "jets.root", SMALL["treename"], hand_made(500), basket_jets=90)
    names = ["jet_pt", "isB", "Cpfcan_pt", "sv_mass"]
    fast = baskets.simple_layout
    monkeypatch.setattr(root_reader, "simple_layout", lambda b: None if b.name in ("isB", "sv_mass") else fast(b))
    tree = check_file(path, SMALL["treename"], names, (1000, 77))
    assert tree._readers.keys() == {"jet_pt", "Cpfcan_pt"}


def test_each_basket_is_decompressed_once(tmp_path, monkeypatch):
    path = write_tree(tmp_path / "jets.root", SMALL["treename"], hand_made(1000), basket_jets=100)
    calls = []
    decompress = baskets.decompress
    monkeypatch.setattr(baskets, "decompress", lambda *a: calls.append(1) or decompress(*a))
    with open_tree(str(path), SMALL["treename"], ["jet_pt", "Cpfcan_pt"]) as tree:
        assert len(list(tree.chunks(37, 1 << 40))) >= 28
    assert len(calls) == 20


def test_chunks_begin_with_baskets_where_that_costs_little(tmp_path):
    path = write_tree(tmp_path / "jets.root", SMALL["treename"], hand_made(1000), basket_jets=100)
    with open_tree(str(path), SMALL["treename"], ["jet_pt", "Cpfcan_pt"]) as tree:
        assert tree.edges(250, 1 << 40) == [0, 200, 400, 600, 800, 1000]
        assert tree.edges(100, 1 << 40) == list(range(0, 1001, 100))
        assert tree.edges(60, 1 << 40)[:5] == [0, 60, 100, 160, 200]
        assert tree.edges(30, 1 << 40)[:5] == [0, 30, 60, 90, 120]


# std::vector baskets made by hand, since uproot cannot write them.


def vector_bytes(lists, dtype):
    """Each list as ROOT streams a std::vector: byte count, version, number of elements, elements."""
    entries = []
    for values in lists:
        numbers = np.asarray(values, dtype).tobytes()
        entries.append(struct.pack(">IHI", 0x40000000 | (6 + len(numbers)), 9, len(values)) + numbers)
    return entries


def vector_branch(baskets_of_lists, dtype, codec=None):
    """The bytes of a file that holds these baskets, and what uproot would say of their branch."""
    content, seeks, sizes, edges = bytearray(b"root"), [], [], [0]
    for lists in baskets_of_lists:
        entries = vector_bytes(lists, dtype)
        key_length = 64
        data = b"".join(entries)
        ends = np.cumsum([0, *map(len, entries)]) + key_length
        ends[-1] = 0
        whole = data + np.array([len(lists) + 1, *ends], ">i4").tobytes()
        payload = uproot.compression.compress(whole, codec) if codec else whole
        key = struct.pack(">ihiIhh", key_length + len(payload), 4, len(whole), 0, key_length, 0)
        tail = struct.pack(">Hiiii", 3, 32000, 1000, len(lists), key_length + len(data)) + b"\0"
        seeks.append(len(content))
        sizes.append(key_length + len(payload))
        edges.append(edges[-1] + len(lists))
        content += key + bytes(key_length - len(key) - len(tail)) + tail + payload
    members = {"fBasketSeek": np.array([*seeks, 0]), "fBasketBytes": np.array([*sizes, 0])}

    class Branch:
        entry_offsets = edges

        def member(self, name):
            return members[name]

    return bytes(content), Branch()


def read_vectors(content, branch, dtype, start, stop):
    reader = BranchReader(memoryview(content), branch, Layout(np.dtype(dtype), 10), branch.entry_offsets)
    raw, sizes = reader.read(start, stop)
    index = Index.of(sizes, 10, np.dtype(dtype).itemsize)
    index.check(raw)
    return PackedLists(raw, index, np.dtype(dtype))


@settings(max_examples=60)
@given(data=st.data())
def test_vectors(data):
    dtype = np.dtype(data.draw(st.sampled_from([">f4", ">i4", ">f8", ">i2", "i1", "bool"])))
    number = st.integers(0, 1) if dtype == np.bool_ else st.integers(-100, 100)
    lists = data.draw(st.lists(st.lists(st.lists(number, max_size=5), min_size=1, max_size=6), max_size=4))
    codec = data.draw(st.sampled_from([None, uproot.ZSTD(1), uproot.LZ4(1)]))
    content, branch = vector_branch(lists, dtype, codec)
    flat = [entry for basket in lists for entry in basket]
    start = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(start, len(flat)))
    found = read_vectors(content, branch, dtype, start, stop)
    assert np.diff(found.offsets).tolist() == [len(entry) for entry in flat[start:stop]]
    assert found.values.dtype == dtype.newbyteorder("=")
    assert found.values.tolist() == [x for entry in flat[start:stop] for x in entry]


def test_vectors_equal_uproots_interpretation():
    lists = [[1.5, 2.5], [], [3.5, 4.5, 5.5]]
    data = np.frombuffer(b"".join(vector_bytes(lists, ">f4")), np.uint8)
    offsets = np.cumsum([0, 18, 10, 22])
    jagged = uproot.AsJagged(uproot.AsDtype(">f4"), header_bytes=10)
    expected = jagged.basket_array(data, offsets, None, None, {}, 0, uproot.interpretation.library._libraries["np"], {})
    index = Index.of(np.diff(offsets), 10, 4)
    np.testing.assert_array_equal(index.offsets, expected.offsets)
    np.testing.assert_array_equal(index.numbers(data, np.dtype(">f4")), expected.content)


LISTS = [[[1, 2], [3]], [[4, 5, 6], []]]


def damaged(change, codec=None):
    content, branch = vector_branch(LISTS, ">f4", codec)
    content = bytearray(content)
    change(content, branch)
    return read_vectors(bytes(content), branch, ">f4", 0, 4)


def put(at, value):
    def change(content, branch):
        content[int(branch.member("fBasketSeek")[1]) + at] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(0, 1), "the header of basket 1 is damaged"),
        (put(63 - 19 + 17, 9), "the header of basket 1 is damaged|instead of"),
        (put(64 + 9, 2), "another number of elements than its size"),
        (put(64 + 32 + 4 + 7, 65), "of basket 1 are damaged|is impossible"),
        (put(64 + 32 + 4 + 3, 1), "of basket 1 are damaged"),
        (lambda content, branch: content.__delitem__(slice(-3, None)), "cut off"),
        (lambda content, branch: branch.entry_offsets.__setitem__(2, 5), "basket 1 has 2 entries instead of 3"),
    ],
)
def test_damage(change, message):
    with pytest.raises(ValueError, match=message):
        damaged(change)


def test_damage_in_a_compressed_block():
    zeros = [[[0] * 40] * 10] * 2
    content, branch = vector_branch(zeros, ">f4", uproot.LZ4(1))
    with pytest.raises(ValueError, match="the checksum of an LZ4 block is wrong"):
        read_vectors(content[:-1] + bytes([content[-1] ^ 1]), branch, ">f4", 0, 20)
    content, branch = vector_branch(zeros, ">f4", uproot.ZSTD(1))
    broken = bytearray(content)
    broken[int(branch.member("fBasketSeek")[0]) + 64] = ord("?")
    with pytest.raises(ValueError, match="a block of .* compressed by b'\\?S', is damaged"):
        read_vectors(bytes(broken), branch, ">f4", 0, 1)


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
                [chunk] = tree.chunks(10_000, 1 << 40)
        except (CorruptFileError, root_reader.MissingBranchError):
            detected += 1
            continue
        assert {len(values) for values in chunk.scalars.values()} == {n_jets}
        changed += any(chunk.scalars[name].tobytes() != values.tobytes() for name, values in jets.items())
    assert detected + changed > 10
    assert changed == 0 or codec == "zstd"


def test_lists_of_one_group_read_once(tmp_path):
    jets = hand_made(50)
    path = write_tree(tmp_path / "TT.root", "tree", Jets(jets.scalars, jets.lists))
    with open_tree(str(path), "tree", ["Cpfcan_pt", "Cpfcan_BtagPf_trackSip2dSig", "sv_mass"]) as tree:
        chunk = tree.read(3, 40)
    assert chunk.jagged["Cpfcan_pt"].index is chunk.jagged["Cpfcan_BtagPf_trackSip2dSig"].index
    assert chunk.jagged["Cpfcan_pt"].index is not chunk.jagged["sv_mass"].index
