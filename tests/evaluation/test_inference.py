"""Whose jets are whose."""

import pytest

from bhive_mltf.errors import DataError
from bhive_mltf.evaluation.inference import share
from bhive_mltf.evaluation.predictions import conclude, join, predict
from tests.evaluation.test_predictions import Linear, batches, make_jets


@pytest.mark.parametrize(
    ("n_jets", "batch_size", "size"), [(1, 1, 1), (101, 16, 3), (101, 16, 7), (96, 16, 4), (5, 2, 3)]
)
def test_w38_ranks_share_whole_batches_and_each_jet_once(n_jets, batch_size, size):
    shares = [share(n_jets, batch_size, rank, size) for rank in range(size)]
    assert [jet for one in shares for jet in one] == list(range(n_jets))
    assert all(one.start % batch_size == 0 for one in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 2 * batch_size - 1


def test_a_missing_part_is_an_error_and_parts_make_the_whole():
    jets = make_jets(40)
    halves = [{name: values[rows] for name, values in jets.items()} for rows in (slice(0, 16), slice(16, 40))]
    parts = [predict(Linear(), batches(half, 8), "cpu", len(half["target"])) for half in halves]
    whole = conclude(join(parts), 40, input_order=True)
    expected = predict(Linear(), batches(jets, 8), "cpu", 40)
    assert (whole.logits == expected.logits).all()
    assert (whole.loss, whole.accuracy) == (expected.loss, expected.accuracy)
    assert whole.seconds == max(part.seconds for part in parts)
    with pytest.raises(DataError, match="16 predictions of the 40"):
        conclude(parts[0], 40, input_order=True)
