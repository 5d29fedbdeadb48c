import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bhive_mltf.data.block import JetBlock, candidate_rows, gather
from bhive_mltf.data.loader import collate
from tests.helpers.memory_dataset import make_dataset


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.data())
def test_candidate_rows_are_those_of_the_jets(counts, data):
    jets = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=40))
    owner = np.repeat(np.arange(len(counts)), counts)
    rows = candidate_rows(np.array(counts, np.int32), np.array(jets, np.int64))
    expected = [row for jet in jets for row in np.flatnonzero(owner == jet)]
    assert rows.tolist() == expected


def test_take_moves_all_columns_together():
    block = make_dataset(200).block
    jets = np.random.default_rng(0).permutation(200)[:70]
    taken = block.take(jets)
    assert len(taken) == 70
    for name in ("truth", "process", "weight", "jet_id", "kinematics"):
        assert np.array_equal(getattr(taken, name), getattr(block, name)[jets])
    first = np.cumsum(taken.counts["cpf"]) - taken.counts["cpf"]
    filled = taken.counts["cpf"] > 0
    assert np.array_equal(taken.features["cpf"][first[filled], 0], 40.0 * jets[filled] + 1)
    assert np.array_equal(taken.features["global"][:, 0], 40.0 * jets + 1)


def test_take_and_concatenate_undo_each_other():
    block = make_dataset(150).block
    pieces = [block.take(np.arange(a, b)) for a, b in [(0, 40), (40, 41), (41, 150)]]
    whole = JetBlock.concatenate(pieces)
    for name, values in block.features.items():
        assert np.array_equal(whole.features[name], values)
    for name, values in block.counts.items():
        assert np.array_equal(whole.counts[name], values)
    assert np.array_equal(whole.jet_id, block.jet_id)
    assert JetBlock.concatenate(pieces[:1]) is pieces[0]


@pytest.mark.parametrize("compiled", [True, False])
@given(st.lists(st.integers(0, 60), max_size=5), st.data())
def test_gather_takes_jets_of_several_blocks(compiled, ends, data):
    block = make_dataset(60).block
    edges = [0, *sorted(ends), 60]
    pieces = [block.take(np.arange(a, b)) for a, b in itertools.pairwise(edges)]
    jets = np.array(data.draw(st.lists(st.integers(0, 59), max_size=80)), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(collate, "PAD_JETS", None)
        found, expected = gather(pieces, jets), block.take(jets)
    for name in ("truth", "process", "weight", "jet_id", "kinematics"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    for name, values in expected.features.items():
        assert found.features[name].dtype == values.dtype
        assert np.array_equal(found.features[name], values)
    assert all(np.array_equal(found.counts[name], values) for name, values in expected.counts.items())
