"""Batches of like jets: another order of the same jets, and the same whoever reads it."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.batch_plan import BatchPlan, Buckets, JetFilter
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.data.loader.rank_shares import work
from bhive_mltf.errors import ParameterError
from tests.helpers.memory_dataset import inputs, make_dataset

DATASET = make_dataset(1500)


def cost(positions):
    return work(DATASET.index, positions, inputs())


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    with patch.object(order, "BLOCK", 64):
        yield


def plan(batch_size, number, *, weighted=False, seed=5, jets=range(1500)):
    factors = order.process_factors(DATASET.schema.processes, None) if weighted else None
    buckets = Buckets(number, cost) if number else None
    options = {"batch_size": batch_size, "shuffle": True, "drop_last": True, "buckets": buckets}
    return BatchPlan(JetFilter(DATASET, seed, None, factors), jets, **options)


def positions(plan, epoch, start=0):
    return [batch.positions for batch in plan.batches(epoch, start)]


@settings(max_examples=50)
@given(
    batch_size=st.integers(1, 700),
    number=st.integers(1, 12),
    weighted=st.booleans(),
    epoch=st.integers(0, 3),
    start=st.integers(0, 40),
    n_jets=st.integers(1, 1500),
)
def test_the_same_jets_each_once_from_any_batch_on(batch_size, number, weighted, epoch, start, n_jets):
    options = {"weighted": weighted, "jets": range(n_jets)}
    this, plain = plan(batch_size, number, **options), plan(batch_size, 0, **options)
    found = positions(this, epoch)
    assert [len(batch) for batch in found] == [batch_size] * plain.n_batches(epoch)
    # With all jets in one window, what the last batch leaves out is the same too.
    if n_jets <= 64 * order.WINDOW:
        every = [np.concatenate([np.empty(0, np.int64), *positions(p, epoch)]) for p in (this, plain)]
        assert np.array_equal(np.sort(every[0]), np.sort(every[1]))
    every = np.concatenate([np.empty(0, np.int64), *found])
    assert len(np.unique(every)) == len(every)
    rest = positions(this, epoch, start)
    assert len(rest) == max(0, len(found) - start)
    assert all(np.array_equal(a, b) for a, b in zip(rest, found[start:], strict=True))


def test_batches_are_alike_inside_and_in_random_turns():
    def spread(batches):
        return np.mean([cost(batch).std() for batch in batches])

    bucketed, plain = positions(plan(30, 5), 1), positions(plan(30, 0), 1)
    assert spread(bucketed) < 0.6 * spread(plain)
    means = np.array([cost(batch).mean() for batch in bucketed])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4
    # one bucket: the batches of before, in other turns
    one = {frozenset(batch.tolist()) for batch in positions(plan(30, 1), 1)}
    assert len(one & {frozenset(batch.tolist()) for batch in plain}) > 0.9 * len(plain)


def test_epochs_and_seeds_differ_and_an_epoch_repeats():
    first = np.concatenate(positions(plan(30, 4), 0))
    assert np.array_equal(first, np.concatenate(positions(plan(30, 4), 0)))
    assert not np.array_equal(first, np.concatenate(positions(plan(30, 4), 1)))
    assert not np.array_equal(first, np.concatenate(positions(plan(30, 4, seed=6), 0)))


def loader(**kwargs):
    options = {"mode": "training", "batch_size": 60, "seed": 3, "weighted": True, "multiplicity_buckets": 4, **kwargs}
    return BatchLoader(DATASET, range(1500), options.pop("model", inputs()), **options)


def ids(batch):
    return [tuple(jet) for jet in batch.jet_id.tolist()]


def test_workers_ranks_and_restarts_change_nothing():
    whole = [ids(batch) for batch in loader().epoch(2)]
    assert [ids(batch) for batch in loader(n_threads=2).epoch(2)] == whole
    assert [ids(batch) for batch in loader().epoch(2, start=3)] == whole[3:]
    ranks = [list(loader(rank=rank, world_size=3).epoch(2)) for rank in range(3)]
    for number, batch in enumerate(whole):
        assert sorted(jet for rank in ranks for jet in ids(rank[number])) == sorted(batch)
        assert len({rank[number].groups["cpf"].features.shape[1] for rank in ranks}) == 1


def test_validation_keeps_the_stored_order():
    jets = [jet for batch in loader(mode="validation").epoch(0) for jet in ids(batch)]
    assert jets == [tuple(jet) for jet in DATASET.index.ids().tolist()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiplicity_buckets": -1}, "give 0 .off. or a number"),
        ({"model": inputs("configured")}, "pads all jets to the configured length"),
    ],
)
def test_what_cannot_be_bucketed(options, message):
    with pytest.raises(ParameterError, match=message):
        loader(**options)
