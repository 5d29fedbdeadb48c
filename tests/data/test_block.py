import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bhive_mltf.data.block import JetBlock
from tests.helpers.memory_dataset import make_dataset


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


@given(st.lists(st.integers(0, 60), max_size=5), st.data())
def test_take_of_several_blocks_follows_the_jets(ends, data):
    block = make_dataset(60).block
    edges = [0, *sorted(ends), 60]
    pieces = [block.take(np.arange(a, b)) for a, b in itertools.pairwise(edges)]
    jets = np.array(data.draw(st.lists(st.integers(0, 59), max_size=80)), np.int64)
    found = JetBlock.concatenate(pieces).take(jets)
    for name in ("truth", "process", "weight", "jet_id", "kinematics"):
        assert np.array_equal(getattr(found, name), getattr(block, name)[jets])
    for name, values in block.features.items():
        counts = block.counts.get(name, np.ones(60, np.int32))
        owner = np.repeat(np.arange(60), counts)
        rows = np.array([row for jet in jets for row in np.flatnonzero(owner == jet)], np.int64)
        assert found.features[name].dtype == values.dtype
        assert np.array_equal(found.features[name], values[rows])
    assert all(np.array_equal(found.counts[name], values[jets]) for name, values in block.counts.items())


@pytest.mark.parametrize(("start", "stop"), [(0, 60), (0, 7), (7, 7), (7, 60)])
def test_part_is_what_take_gives(start, stop):
    block = make_dataset(60).block
    found, expected = block.part(start, stop), block.take(np.arange(start, stop))
    for name in ("truth", "process", "weight", "jet_id", "kinematics"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert all(np.array_equal(found.features[name], values) for name, values in expected.features.items())
    assert all(np.array_equal(found.counts[name], values) for name, values in expected.counts.items())
