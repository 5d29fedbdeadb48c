from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.collate import Memory, WindowTable
from bhive_mltf.errors import ParameterError

RANGES = st.tuples(st.integers(0, 5000), st.integers(1, 60_000)).map(lambda t: range(t[0], t[0] + t[1]))


@given(RANGES, st.sampled_from([None, (1, 0), (2, 7)]))
def test_windows_hold_each_jet_once(jets, shuffle):
    positions = [order.window_positions(jets, window) for window in order.windows(jets, shuffle)]
    assert all(len(p) <= order.BLOCK * order.WINDOW for p in positions)
    assert all((np.diff(p) > 0).all() for p in positions)
    assert np.array_equal(np.sort(np.concatenate(positions)), np.arange(jets.start, jets.stop))


@given(RANGES)
def test_rows_are_places_among_the_positions(jets):
    for window in order.windows(jets, (3, 1)):
        positions = order.window_positions(jets, window)
        table = WindowTable(Memory([]), None, {}, {}, order.window_runs(jets, window))
        assert np.array_equal(table.rows(positions), np.arange(len(positions)))


@given(RANGES)
def test_runs_are_few_and_cover_the_window(jets):
    for window in order.windows(jets, (3, 1)):
        runs = order.window_runs(jets, window)
        assert sum(map(len, runs)) == len(order.window_positions(jets, window))
        assert all(a.stop < b.start for a, b in pairwise(runs))


def test_stored_order_is_read_in_one_run_per_window():
    jets = range(100, 100 + 3 * order.BLOCK * order.WINDOW)
    for window in order.windows(jets):
        assert len(order.window_runs(jets, window)) == 1


def test_blocks_are_permuted_anew_in_each_epoch():
    jets = range(64 * order.BLOCK)
    of = {(seed, epoch): list(order.windows(jets, (seed, epoch))) for seed in (1, 2) for epoch in (0, 1)}
    assert len({str(windows) for windows in of.values()}) == 4
    assert of[1, 0] == list(order.windows(jets, (1, 0)))


def test_jets_of_a_window_are_shuffled_by_their_ids():
    positions = np.arange(1000)
    content, entry = np.full(1000, 11, np.uint64), np.arange(5000, 6000)
    first = order.shuffled(positions, content, entry, 1, 0)
    assert np.array_equal(np.sort(first), positions)
    assert abs(np.corrcoef(first, positions)[0, 1]) < 0.1
    assert not np.array_equal(first, order.shuffled(positions, content, entry, 1, 1))
    assert not np.array_equal(first, order.shuffled(positions, content, entry, 2, 0))
    # A part of the jets keeps its order: it hangs on each id alone.
    part = np.arange(0, 1000, 3)
    assert np.array_equal(order.shuffled(part, content[part], entry[part], 1, 0), first[first % 3 == 0])


def test_equal_ids_keep_the_order_of_positions():
    same = np.zeros(50, np.uint64)
    assert np.array_equal(order.shuffled(np.arange(50), same, same, 1, 0), np.arange(50))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(0, 2**64 - 1))
def test_shuffled_is_a_stable_sort_by_the_random_bits(entries, content):
    entry, ids = np.array(entries, np.uint64), np.full(len(entries), content, np.uint64)
    bits = order.random_bits(order.random_key(1, "window", 0), ids, entry)
    positions = np.arange(len(entry))
    assert np.array_equal(order.shuffled(positions, ids, entry, 1, 0), positions[np.argsort(bits, kind="stable")])


def test_numbers_that_differ_in_their_last_bits_only_are_sorted(monkeypatch):
    bits = np.array([7, 6, 5, 4, 9, 9, 1 << 40, 0], np.uint64)
    monkeypatch.setattr(order, "random_bits", lambda *_: bits)
    shuffled = order.shuffled(np.arange(8), bits, bits, 1, 0)
    assert shuffled.tolist() == [7, 3, 2, 1, 0, 4, 5, 6]


def test_sampling_frequency_is_the_probability():
    n = 40_000
    probability = np.repeat([0.0, 0.1, 0.5, 1.0], n // 4)
    content, entry = np.full(n, 3, np.uint64), np.arange(n)
    taken = order.sampled(probability, content, entry, 1, 0).reshape(4, -1).mean(axis=1)
    assert taken[0] == 0
    assert taken[3] == 1
    assert taken[1:3] == pytest.approx([0.1, 0.5], abs=0.015)


def test_sampling_is_independent_between_epochs():
    n = 20_000
    content, entry, half = np.full(n, 3, np.uint64), np.arange(n), np.full(n, 0.5)
    a, b = (order.sampled(half, content, entry, 1, epoch) for epoch in (0, 1))
    assert (a & b).mean() == pytest.approx(0.25, abs=0.015)


def test_w29_a_larger_process_weight_keeps_more_jets():
    factors = order.process_factors(("QCD", "TTBar", "DY"), {"QCD": 1.0, "TTBar": 4.0})
    assert factors.tolist() == [0.25, 1.0, 0.25]
    probability = order.sampling_probability(np.array([0.5, 0.5], np.float32), np.array([0, 1]), factors)
    assert probability.tolist() == [0.125, 0.5]


def test_without_process_weights_the_weight_is_the_probability():
    assert order.process_factors(("QCD", "TTBar"), None).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"TTBra": 1.0}, "'TTBra', .*nearest: TTBar"),
        ({"QCD": -1.0}, "'QCD' the weight -1.0"),
        ({"QCD": float("nan")}, "nan"),
        ({"QCD": 0.0, "TTBar": 0}, "every process the weight 0"),
    ],
)
def test_process_weights_that_cannot_be(weights, message):
    with pytest.raises(ParameterError, match=message):
        order.process_factors(("QCD", "TTBar"), weights)
