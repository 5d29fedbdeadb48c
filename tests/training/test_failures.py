"""Which rank is named when several ended badly."""

import signal
from types import SimpleNamespace

import pytest

from bhive_mltf.ranks.failures import explain
from bhive_mltf.ranks.files import RankError, log_path
from bhive_mltf.ranks.signals import INTERRUPTED_EXIT_CODE, TrainingInterruptedError

LOST = "[gloo/transport/tcp/pair.cc] Connection closed by peer"
TIMED_OUT = "[gloo/transport/tcp/unbound_buffer.cc] Timed out waiting 4000ms for recv operation to complete"


def failure(code):
    return SimpleNamespace(exitcode=code, signal_name=lambda: signal.Signals(-code).name)


def leave(directory, rank, kind, message, time, *, lost=False, by_user=False):
    text = f"Traceback ...\n{kind}: {message}\n"
    RankError(rank, time, kind, message, lost=lost, by_user=by_user, traceback=text).write(directory)


@pytest.mark.parametrize("slow_to_end", [False, True])
def test_a_rank_s_own_error_comes_before_lost_connections(tmp_path, slow_to_end):
    leave(tmp_path, 0, "RuntimeError", LOST, 2.0, lost=True)
    leave(tmp_path, 2, "ValueError", "no such jet", 1.0)
    failures = {0: failure(1), 2: failure(1), **({1: failure(-9)} if slow_to_end else {})}
    first, *rest = str(explain(tmp_path, 3, failures)).splitlines()
    assert first.startswith("Rank 2 of 3 failed (ValueError: no such jet); its traceback is in")
    assert rest[-1] == "    ValueError: no such jet"


def test_an_error_of_the_user_is_one_sentence(tmp_path):
    leave(tmp_path, 1, "ParameterError", "batch_size is 0, but must be at least 1", 1.0, by_user=True)
    assert len(str(explain(tmp_path, 2, {1: failure(1)})).splitlines()) == 1


def test_a_killed_rank_is_shown_with_the_end_of_its_log(tmp_path):
    leave(tmp_path, 0, "RuntimeError", LOST, 1.0, lost=True)
    log_path(tmp_path, 1).write_text("".join(f"line {number}\n" for number in range(40)))
    first, *rest = str(explain(tmp_path, 2, {0: failure(1), 1: failure(-9)})).splitlines()
    assert first.startswith("Rank 1 of 2 failed (it was killed by SIGKILL)")
    assert len(rest) == 15
    assert rest[-1] == "    line 39"


def test_a_rank_that_others_waited_for_in_vain_is_named(tmp_path):
    leave(tmp_path, 0, "RuntimeError", TIMED_OUT, 1.0, lost=True)
    for failures in ({0: failure(1)}, {0: failure(1), 1: failure(-9)}):
        assert str(explain(tmp_path, 2, failures)).startswith("Rank 1 of 2 failed (it stopped answering)")


@pytest.mark.parametrize("what", ["training", "inference"])
def test_ranks_that_all_saved_and_stopped_are_no_failure(tmp_path, what):
    error = explain(tmp_path, 2, dict.fromkeys((0, 1), failure(INTERRUPTED_EXIT_CODE)), what)
    assert isinstance(error, TrainingInterruptedError)
    assert str(error).startswith(f"The {what} in {tmp_path} was stopped by a signal to a rank")
