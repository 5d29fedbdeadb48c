"""Which rank is named when several ended badly."""

import signal
from types import SimpleNamespace

import pytest

from bhive_mltf.ranks.failures import explain
from bhive_mltf.ranks.files import RankError, log_path
from bhive_mltf.ranks.signals import INTERRUPTED_EXIT_CODE, TrainingInterruptedError
from bhive_mltf.ranks.time_outs import in_vain, log_sizes, waited_for

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


WATCHDOG = (
    "[rank{0}]:[E1218 20:27:21.426415540 ProcessGroupNCCL.cpp:629] [Rank {0}] Watchdog caught collective operation "
    "timeout: WorkNCCL(SeqNum={1}, OpType=ALLREDUCE, NumelIn=9, NumelOut=9, Timeout(ms)=600000) ran for 600081 "
    "milliseconds before timing out.\n"
)


def wrote(directory, rank, text):
    path = log_path(directory, rank)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def test_a_rank_that_nccl_waited_for_in_vain_is_named(tmp_path):
    """The watchdog ends those that waited by SIGABRT: they look as if they had failed."""
    wrote(tmp_path, 0, WATCHDOG.format(0, 12) + "stack\n" * 9)
    wrote(tmp_path, 2, WATCHDOG.format(2, 12))
    wrote(tmp_path, 1, "epoch 1\n")
    failures = {0: failure(-6), 2: failure(-6), 1: failure(-9)}
    first, *rest = str(explain(tmp_path, 3, failures)).splitlines()
    assert first.startswith("Rank 1 of 3 failed (it stopped answering)")
    assert rest == ["    epoch 1"]


def test_several_ranks_that_are_behind_are_all_named(tmp_path):
    wrote(tmp_path, 0, WATCHDOG.format(0, 12))
    text = str(explain(tmp_path, 3, {0: failure(-6)}))
    assert text.startswith("Rank 1 of 3 failed (ranks 1, 2 stopped answering, others waited in vain)")


def test_where_all_waited_the_smallest_number_is_behind(tmp_path):
    for rank, number in enumerate((12, 11, 12)):
        wrote(tmp_path, rank, WATCHDOG.format(rank, number))
    assert waited_for(tmp_path, 3) == (1,)
    assert in_vain((1,)) == "rank 1 stopped answering, others waited in vain"
    wrote(tmp_path, 1, WATCHDOG.format(1, 12))
    assert waited_for(tmp_path, 3) == ()


def test_a_rank_that_came_late_is_named_not_those_that_gave_up(tmp_path):
    """The one behind loses its connections when the others have ended."""
    leave(tmp_path, 0, "RuntimeError", TIMED_OUT, 1.0, lost=True)
    leave(tmp_path, 1, "RuntimeError", LOST, 2.0, lost=True)
    assert str(explain(tmp_path, 2, {0: failure(1), 1: failure(1)})).startswith("Rank 1 of 2 failed (it stopped")


def test_what_an_earlier_attempt_left_in_a_log_does_not_count(tmp_path):
    wrote(tmp_path, 0, WATCHDOG.format(0, 12))
    sizes = log_sizes(tmp_path, 2)
    assert waited_for(tmp_path, 2) == (1,)
    assert waited_for(tmp_path, 2, sizes) == ()
    with log_path(tmp_path, 0).open("a") as file:
        file.write(WATCHDOG.format(0, 3))
    assert waited_for(tmp_path, 2, sizes) == (1,)
