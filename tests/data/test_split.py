import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bhive_mltf.data.loader.batch_plan import split_ranges, training_range
from bhive_mltf.errors import DataError, ParameterError
from tests.helpers.memory_dataset import make_dataset

EDGES = [0, 30, 55, 80, 100]


@given(n=st.integers(1, 300), split=st.floats(0.01, 0.99))
def test_ranges_are_disjoint_and_complete(n, split):
    train, validation = split_ranges(make_dataset(n, edges=[0, n]), split)
    assert len(train) == max(1, int(n * split))
    assert train.start == 0
    if n > 1:
        assert (validation.start, validation.stop) == (train.stop, n)
    else:
        assert validation == range(1)


def test_split_does_not_look_at_shards():
    assert split_ranges(make_dataset(100, edges=EDGES), 0.85) == (range(85), range(85, 100))
    assert split_ranges(make_dataset(100, edges=[0, 100]), 0.85) == (range(85), range(85, 100))


@pytest.mark.parametrize(("split", "n_train"), [(0.85, 80), (0.5, 55), (0.1, 30), (0.75, 80)])
def test_foreign_sets_are_split_by_files(split, n_train):
    dataset = make_dataset(100, edges=EDGES, derived=True)
    assert split_ranges(dataset, split) == (range(n_train), range(n_train, 100))


def test_foreign_set_of_one_file_is_split_by_rows():
    dataset = make_dataset(100, edges=[0, 100], derived=True)
    assert split_ranges(dataset, 0.6) == (range(60), range(60, 100))


@pytest.mark.parametrize(("n_files", "n_train"), [(-1, 85), (1, 30), (2, 55), (3, 80), (4, 85), (99, 85)])
def test_n_train_files_cuts_the_training_part_only(n_files, n_train):
    train, validation = split_ranges(make_dataset(100, edges=EDGES), 0.85, n_files)
    assert train == range(n_train)
    assert validation == range(85, 100)


def test_all_jets_validate_with_a_warning_when_none_is_left(caplog):
    with caplog.at_level(logging.WARNING):
        train, validation = split_ranges(make_dataset(100, edges=EDGES), 1.0)
    assert train == validation == range(100)
    assert "all 100 jets validate" in caplog.text


@pytest.mark.parametrize("split", [0.0, -0.1, 1.01, float("nan")])
def test_split_outside_its_range(split):
    with pytest.raises(ParameterError, match="train-val-split"):
        split_ranges(make_dataset(10), split)


@pytest.mark.parametrize("n_files", [0, -2])
def test_number_of_files_outside_its_range(n_files):
    with pytest.raises(ParameterError, match=f"n-train-files is {n_files}"):
        split_ranges(make_dataset(10), 0.5, n_files)


def test_no_jets():
    with pytest.raises(DataError, match="no jets"):
        split_ranges(make_dataset(0, edges=[0, 0]), 0.5)


def test_all_jets_train_beside_a_validation_set():
    dataset = make_dataset(100, edges=EDGES)
    assert training_range(dataset) == range(100)
    assert training_range(dataset, 2) == range(55)
    assert training_range(dataset, 9) == range(100)
    with pytest.raises(ParameterError, match="--n-train-files is 0"):
        training_range(dataset, 0)
