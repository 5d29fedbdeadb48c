from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.batch_plan import BatchPlan, JetFilter
from tests.helpers.memory_dataset import CLASSES, make_dataset

DATASET = make_dataset(1500, labels=(0, 1, 2, 3, 4))
RANGES = st.tuples(st.integers(0, 700), st.integers(1, 700)).map(lambda t: range(t[0], t[0] + t[1]))


def plan(jets, batch_size, *, shuffle=True, drop_last=True, matched=None, weighted=False, seed=5, dataset=DATASET):
    factors = order.process_factors(dataset.schema.processes, None) if weighted else None
    wanted = JetFilter(dataset, seed, matched, factors)
    return BatchPlan(wanted, jets, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)


def positions(plan, epoch, start=0):
    return [batch.positions for batch in plan.batches(epoch, start)]


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    with patch.object(order, "BLOCK", 16):
        yield


@settings(max_examples=60)
@given(RANGES, st.integers(1, 300), st.booleans())
def test_w02_stored_order_holds_each_jet_once(jets, batch_size, drop):
    batches = list(plan(jets, batch_size, shuffle=False, drop_last=False, matched=CLASSES if drop else None).batches(0))
    wanted = np.arange(jets.start, jets.stop)
    if drop:
        wanted = wanted[DATASET.index.truth_bits[wanted] != 16]
    found = [p for batch in batches for p in batch.positions.tolist()]
    assert found == wanted.tolist()
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert [batch.number for batch in batches] == list(range(len(batches)))


@settings(max_examples=60)
@given(RANGES, st.integers(1, 300), st.booleans(), st.integers(0, 3))
def test_training_epoch(jets, batch_size, weighted, epoch):
    this = plan(jets, batch_size, weighted=weighted, matched=CLASSES)
    batches = positions(this, epoch)
    assert len(batches) == this.n_batches(epoch)
    assert all(len(batch) == batch_size for batch in batches)
    found = np.concatenate([np.empty(0, int), *batches])
    assert len(np.unique(found)) == len(found)
    assert set(found.tolist()) <= set(jets)
    assert 0 <= this.n_selected(epoch) - len(found) < batch_size


@settings(max_examples=60)
@given(RANGES, st.integers(1, 100), st.booleans(), st.booleans(), st.integers(0, 50))
def test_start_equals_skipping(jets, batch_size, weighted, shuffle, start):
    this = plan(jets, batch_size, weighted=weighted, shuffle=shuffle, drop_last=shuffle)
    whole, rest = positions(this, 2), positions(this, 2, start)
    assert len(rest) == max(0, len(whole) - start)
    assert all(np.array_equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_order_differs_by_epoch_and_seed_and_is_repeatable():
    def order_of(seed, epoch):
        return np.concatenate(positions(plan(range(1000), 50, seed=seed), epoch))

    first = order_of(5, 0)
    assert np.array_equal(first, order_of(5, 0))
    assert not np.array_equal(first, order_of(5, 1))
    assert not np.array_equal(first, order_of(6, 0))
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.2


def test_the_order_of_the_jets_does_not_depend_on_the_batch_size():
    a, b = (np.concatenate(positions(plan(range(1200), size, weighted=True), 1)) for size in (7, 64))
    n = min(len(a), len(b))
    assert np.array_equal(a[:n], b[:n])


def test_sampling_keeps_jets_as_often_as_their_weight_says():
    this = plan(range(1500), 1, weighted=True)
    epochs = 60
    seen = np.zeros(1500)
    for epoch in range(epochs):
        seen[np.concatenate(positions(this, epoch))] += 1
    for weight in (0.0, 0.25, 0.5, 1.0):
        share = seen[DATASET.index.weight == weight].mean() / epochs
        assert share == pytest.approx(weight, abs=0.02)


def test_planning_never_reads_features():
    dataset = make_dataset(500)
    this = plan(range(500), 10, weighted=True, dataset=dataset)
    assert positions(this, 0, 3)
    assert dataset.reads == []


def test_counts_are_kept_per_epoch():
    this = plan(range(1500), 10, weighted=True)
    numbers = [this.n_selected(epoch) for epoch in range(5)]
    assert len(set(numbers)) > 1
    with patch.object(JetFilter, "mask", side_effect=AssertionError):
        assert [this.n_selected(epoch) for epoch in range(5)] == numbers


@given(st.integers(1, 200), st.lists(st.floats(0, 1), min_size=1, max_size=4))
@settings(max_examples=30)
def test_pick_takes_jets_in_the_order_of_the_batch(batch_size, fractions):
    batch = next(iter(plan(range(1500), batch_size).batches(0)))
    edges = sorted({0, batch_size, *(int(f * batch_size) for f in fractions)})
    jets = np.arange(batch_size)
    found = [part.positions for a, b in pairwise(edges) for part in batch.pick((a <= jets) & (jets < b))]
    assert np.array_equal(np.concatenate(found), batch.positions)


def test_memory_is_bounded_by_a_window_not_by_the_range():
    batches = plan(range(1500), 4).batches(0)
    with patch.object(order, "shuffled", wraps=order.shuffled) as shuffled:
        next(batches)
        assert shuffled.call_count == 1
        assert len(shuffled.call_args.args[0]) == 16 * order.WINDOW
