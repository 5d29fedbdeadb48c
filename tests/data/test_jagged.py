"""Candidates into padded arrays, by the compiled function and without it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bhive_mltf.data.layouts.column_planes import Plane
from bhive_mltf.data.loader import collate
from bhive_mltf.data.loader.collate import Chosen, Memory, Recipe, Scratch, assemble
from bhive_mltf.errors import CorruptFileError
from tests.helpers.compiling import shared_library

LENGTH = 6


@pytest.fixture(scope="session")
def pad_jets(tmp_path_factory):
    library = shared_library(tmp_path_factory.mktemp("compiled"), collate.PAD_JETS_SOURCE)
    function = collate.load_pad_jets(library)
    assert function is not None
    return function


@pytest.fixture(params=["compiled", "python"])
def way(request, monkeypatch):
    function = request.getfixturevalue("pad_jets") if request.param == "compiled" else None
    monkeypatch.setattr(collate, "PAD_JETS", function)


PLANES = {
    "one plane": (Plane("cpf", (0, 1, 2, 3, 4)),),
    "two planes": (Plane("cpf", (3, 0, 4)), Plane("cpf.1", (1, 2))),
    "one of float16": (Plane("cpf", (4, 0, 3), half=True), Plane("cpf.1", (1, 2))),
}


def write(planes, counts, seed, n_pieces):
    """Random candidates [jet][n, 5] and the same as they would lie in some pieces of memory, with gaps."""
    random = np.random.default_rng(seed)
    jets = [random.normal(size=(n, 5)).astype(np.float32) for n in counts]
    half = {column for plane in planes if plane.half for column in plane.positions}
    for values in jets:
        values[:, sorted(half)] = values[:, sorted(half)].astype(np.float16)
    where = random.integers(0, n_pieces, len(jets))
    pieces, begins = [bytearray(4) for _ in range(n_pieces)], np.zeros((len(planes), len(jets)), np.int64)
    for number, plane in enumerate(planes):
        for jet, values in enumerate(jets):
            begins[number, jet] = len(pieces[where[jet]])
            pieces[where[jet]] += values[:, plane.positions].astype(plane.type).tobytes() + b"\xff" * 4
    memory = Memory([memoryview(bytes(piece)) for piece in pieces])
    return jets, Chosen(memory, where if n_pieces > 1 else None, list(begins), np.array(counts, np.int64))


@given(
    name=st.sampled_from(sorted(PLANES)),
    counts=st.lists(st.integers(0, LENGTH), max_size=12),
    wanted=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
    n_pieces=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@pytest.mark.usefixtures("way")
def test_columns_of_candidates_padded(name, counts, wanted, n_pieces, seed):
    planes = PLANES[name]
    jets, chosen = write(planes, counts, seed, n_pieces)
    recipe = Recipe.of(planes, wanted, [2, 1])
    chosen = Chosen(chosen.memory, chosen.where, [chosen.begins[planes.index(p)] for p in recipe.planes], chosen.counts)
    for columns, picked in ((wanted, recipe.features), ([2, 1], recipe.vectors)):
        out = np.full((len(counts), LENGTH, len(columns)), np.nan, np.float32)
        assemble(chosen, recipe, picked, out, Scratch())
        for jet, values in enumerate(jets):
            assert np.array_equal(out[jet, : len(values)], values[:, columns])
            assert (out[jet, len(values) :] == 0).all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("wrong", ["begins before", "ends behind", "has more than there is room for"])
def test_a_jet_outside_of_its_memory_is_an_error(wrong):
    planes = PLANES["one plane"]
    _, chosen = write(planes, [2, 3, 1], 0, 1)
    recipe = Recipe.of(planes, range(5), ())
    if wrong == "begins before":
        chosen.begins[0][1] = -4
    elif wrong == "ends behind":
        chosen.begins[0][1] = chosen.memory.sizes[0] - 3 * 20 + 1
    else:
        chosen.counts[1] = LENGTH + 1
    out = np.zeros((3, LENGTH, 5), np.float32)
    with pytest.raises(CorruptFileError, match="do not lie in the shard"):
        assemble(chosen, recipe, recipe.features, out, Scratch())


def test_a_library_that_cannot_be_loaded_is_not_used(tmp_path):
    (tmp_path / "broken.so").write_bytes(b"not a library")
    assert collate.load_pad_jets(tmp_path / "broken.so") is None
    assert collate.load_pad_jets(tmp_path / "missing.so") is None
