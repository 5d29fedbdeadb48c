import logging

import numpy as np
import pytest

from bhive_mltf.data.loader.targets import (
    check_filled,
    check_mode,
    check_unmatched,
    class_targets,
    count_classes,
    resolve_unmatched,
)
from bhive_mltf.errors import DataError, ModelError, ParameterError

TRUTHS = ("isB", "isBB", "isC", "isL", "isTau")
CLASSES = (("b", ("isB", "isBB")), ("c", ("isC",)), ("l", ("isL",)))
B, BB, C, L, TAU = (1 << k for k in range(5))


def bits(*values):
    return np.array(values, np.uint64)


def counts(*values):
    return count_classes(bits(*values), range(len(values)), TRUTHS, CLASSES)


def test_targets():
    assert class_targets(bits(B, BB, C, L, TAU, 0), TRUTHS, CLASSES).tolist() == [0, 0, 1, 2, -1, -1]


def test_later_classes_overwrite():
    assert class_targets(bits(B | C, B | L | C, TAU | B), TRUTHS, CLASSES).tolist() == [1, 2, 0]


def test_sixty_four_labels():
    truths = [f"t{k}" for k in range(64)]
    classes = (("first", ("t0",)), ("last", ("t63",)))
    assert class_targets(bits(1, 1 << 63, 2), truths, classes).tolist() == [0, 1, -1]


def test_class_with_a_label_that_the_config_does_not_have():
    with pytest.raises(ModelError, match=r"class 'uds' .* 'isUD', .*nearest: .*'isU'"):
        class_targets(bits(1), ("isU", "isD"), (("uds", ("isUD", "isU")),))


def test_counts_go_piece_by_piece():
    values = np.random.default_rng(1).choice(bits(B, C, TAU), 200_000)
    part = range(17, 180_003)
    counted = count_classes(values, part, TRUTHS, CLASSES)
    inside = values[17:180_003]
    assert counted.per_class == {"b": (inside == B).sum(), "c": (inside == C).sum(), "l": 0}
    assert counted.unmatched == (inside == TAU).sum()
    assert counted.unmatched_labels == {"isTau": counted.unmatched}
    assert counted.total == len(part)


def test_w15_jets_in_no_class_are_an_error_by_default():
    with pytest.raises(DataError) as caught:
        check_unmatched(counts(B, TAU, 0, TAU), "error", CLASSES)
    message = str(caught.value)
    for part in ("3 of 4 jets", "isTau: 2", "(no label): 1", "--unmatched drop", "--unmatched first", "'b'"):
        assert part in message


@pytest.mark.parametrize("mode", ["drop", "first"])
def test_w15_jets_in_no_class_are_accepted_when_asked_for(mode):
    check_unmatched(counts(B, TAU), mode, CLASSES)


@pytest.mark.parametrize(("mode", "expected"), [("error", [-1, 0, 2]), ("drop", [-1, 0, 2]), ("first", [0, 0, 2])])
def test_w15_upstreams_class_0_can_be_had(mode, expected):
    assert resolve_unmatched(np.array([-1, 0, 2]), mode).tolist() == expected


def test_mode_of_unmatched():
    assert check_mode("drop") == "drop"
    with pytest.raises(ParameterError, match=r"'ignore': give one of 'error', 'drop', 'first'"):
        check_mode("ignore")


def test_fewer_than_two_filled_classes():
    with pytest.raises(DataError, match="only 'c' of the model's classes 'b', 'c', 'l'"):
        check_filled(counts(C, C), "error")
    with pytest.raises(DataError, match="only none"):
        check_filled(counts(TAU), "drop")
    check_filled(counts(C, TAU), "first")


def test_other_empty_classes_are_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        check_filled(counts(B, C), "error")
    assert "'l'" in caplog.text
