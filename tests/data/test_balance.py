"""The jets of a global batch are dealt to the ranks by work."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.data.loader.rank_shares import assign, work
from tests.helpers.memory_dataset import inputs, make_dataset

DATASET = make_dataset(900)
COSTS = st.lists(st.integers(0, 30_000), min_size=1, max_size=300).map(lambda c: np.array(c, np.int64))


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    with patch.object(order, "BLOCK", 16):
        yield


@given(COSTS, st.integers(1, 9))
def test_every_jet_goes_to_one_rank_numbers_differ_by_one(cost, world_size):
    ranks = assign(cost, world_size)
    assert ranks.shape == cost.shape
    numbers = np.bincount(ranks, minlength=world_size)
    assert len(numbers) == world_size
    assert numbers.max() - numbers.min() <= 1


@given(COSTS, st.integers(1, 9))
def test_no_rank_has_more_than_the_heaviest_jet_above_another(cost, world_size):
    loads = np.bincount(assign(cost, world_size), cost, world_size)
    assert loads.max() - loads.min() <= cost.max()


@given(COSTS, st.integers(1, 9))
def test_assignment_is_a_pure_function_and_one_rank_gets_all(cost, world_size):
    assert np.array_equal(assign(cost, world_size), assign(cost.copy(), world_size))
    assert not assign(cost, 1).any()


@given(COSTS, st.integers(1, 9))
def test_jets_are_dealt_from_the_most_work_to_the_least(cost, world_size):
    turns = [*range(world_size), *reversed(range(world_size))]
    dealt = [turns[place % len(turns)] for place in range(len(cost))]
    assert assign(cost, world_size)[np.argsort(-cost, kind="stable")].tolist() == dealt


def test_snake_deal_of_known_costs():
    assert assign(np.array([5, 9, 1, 7, 3, 2, 8]), 3).tolist() == [2, 0, 0, 2, 1, 0, 1]


@pytest.mark.parametrize(("world_size", "jets", "heaviest"), [(4, 512, 1.004), (8, 128, 1.056)])
def test_heaviest_rank_is_close_to_the_mean(world_size, jets, heaviest):
    # multiplicities like those of AK8 jets: pairs (n^2) and single candidates (n) are both alike on all ranks
    random = np.random.default_rng(3)
    over_mean = []
    for _ in range(20):
        n = np.clip(random.normal(50, 20, jets), 1, 128).astype(np.int64)
        ranks = assign(n * (n + 64), world_size)
        for part in (n, n * (n + 64)):
            loads = np.bincount(ranks, part, world_size)
            over_mean.append(loads.max() / loads.mean())
    assert np.mean(over_mean) < heaviest


def test_work_counts_the_candidates_that_the_model_reads():
    positions = np.arange(100, 200)
    counts = DATASET.index.counts
    n = np.minimum(counts("cpf")[positions], 4).astype(np.int64) + counts("vtx")[positions]
    assert np.array_equal(work(DATASET.index, positions, inputs(cpf=4)), n * (n + 64))
    assert work(DATASET.index, positions, inputs("configured")) is None


def epochs(world_size, mode="training", padding="longest", batch_size=64, start=0):
    loaders = [
        BatchLoader(
            DATASET, range(900), inputs(padding), mode=mode, batch_size=batch_size, rank=rank, world_size=world_size,
            seed=3, weighted=False,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    return list(zip(*(loader.epoch(1, start) for loader in loaders), strict=True))


@settings(max_examples=15)
@given(st.integers(2, 7), st.integers(7, 90))
def test_the_ranks_hold_the_jets_of_the_global_batch(world_size, batch_size):
    whole = [batch for (batch,) in epochs(1, batch_size=batch_size)]
    shared = epochs(world_size, batch_size=batch_size)
    assert len(shared) == len(whole)
    for batch, parts in zip(whole, shared, strict=True):
        place = {tuple(jet): i for i, jet in enumerate(batch.jet_id.tolist())}
        taken = [[place[tuple(jet)] for jet in part.jet_id.tolist()] for part in parts]
        assert sorted(i for places in taken for i in places) == list(range(batch_size))
        for part, places in zip(parts, taken, strict=True):
            # in the order of the global batch, each jet with its own values, padded as one rank would
            assert places == sorted(places)
            assert torch.equal(part.target, batch.target[places])
            assert all(torch.equal(g.features, batch.groups[k].features[places]) for k, g in part.groups.items())
        assert {part.global_size for part in parts} == {batch_size}


def test_a_start_in_mid_epoch_changes_no_share():
    for whole, rest in zip(epochs(3)[5:], epochs(3, start=5), strict=True):
        assert all(torch.equal(a.jet_id, b.jet_id) for a, b in zip(whole, rest, strict=True))


@pytest.mark.parametrize(("mode", "padding"), [("training", "configured"), ("validation", "longest")])
def test_shares_are_contiguous_where_work_does_not_matter(mode, padding):
    for (whole,), parts in zip(epochs(1, mode, padding), epochs(3, mode, padding), strict=True):
        assert torch.equal(torch.cat([part.jet_id for part in parts]), whole.jet_id)


def test_ranks_have_the_same_work():
    for parts in epochs(2, batch_size=128):
        n = [part.groups["cpf"].mask.sum(1) + part.groups["vtx"].mask.sum(1) for part in parts]
        loads = [int((x * (x + 64)).sum()) for x in n]
        assert max(loads) / min(loads) < 1.03
