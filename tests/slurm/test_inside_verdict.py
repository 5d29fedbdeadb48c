"""How a job goes on after its ranks ended, as a table."""

import json
from dataclasses import replace

import pytest

from bhive_mltf.ranks.files import RankError, StoppedNote
from bhive_mltf.slurm.batch_step import supervisor
from bhive_mltf.slurm.batch_step.attempts import Attempt, read_attempts
from bhive_mltf.slurm.batch_step.verdict import AttemptOutcome as Outcome
from bhive_mltf.slurm.batch_step.verdict import ExitCode, Seen, first_reason, judge

NO_MEMORY = "the GPU has no memory left: take a smaller --batch-size"
SAVED = StoppedNote(attempt=1, step=7, signal="SIGUSR2")
LOST = RankError(rank=0, kind="RuntimeError", message="gloo/ closed", lost=True, time=1.0)
USER = RankError(rank=1, kind="NonFiniteLossError", message="The loss is NaN.", by_user=True, time=2.0)
LOCKED = RankError(rank=0, kind="LockedError", message="in use", by_user=True, time=2.0)
BUG = RankError(rank=1, kind="KeyError", message="'x'", time=2.0)
CUDA = RankError(rank=1, kind="RuntimeError", message="CUDA error: uncorrectable ECC error", time=2.0)
ECC = replace(CUDA, cause="bad_node", node="n2", explanation="a GPU of this node failed: exclude it")
DRIVER = replace(CUDA, cause="old_driver", explanation="the driver is too old: take another node")
CARD = replace(CUDA, cause="unknown_card", explanation="torch has no kernels for the GPUs of this node")
INDEX = replace(CUDA, cause="bad_index", explanation="a GPU met an index out of its range")
MEMORY = RankError(1, 2.0, "OutOfMemoryError", "CUDA out of memory.", cause="out_of_memory", explanation=NO_MEMORY)
FULL = RankError(rank=0, kind="OSError", message="No space left on device", no_space=True, time=2.0)

TABLE = [
    # seen, outcome, put back, exit code, words of the reason
    ({"exit_code": 0}, Outcome.DONE, False, ExitCode.DONE, "done"),
    ({"exit_code": 0, "stopped": SAVED}, Outcome.STOPPED, True, ExitCode.DONE, "SIGUSR2 and saved at step 7"),
    (
        {"exit_code": 0, "stopped": SAVED, "attempt": 3},
        Outcome.FAILED,
        False,
        ExitCode.TRY_AGAIN,
        "attempt 3 of 3",
    ),
    ({"exit_code": 0, "stopped": SAVED, "terminated": True}, Outcome.ENDED, False, ExitCode.TRY_AGAIN, "step 7"),
    ({"exit_code": 143, "terminated": True}, Outcome.ENDED, False, ExitCode.TRY_AGAIN, "last checkpoint"),
    ({"exit_code": 137}, Outcome.BROKEN, True, ExitCode.DONE, "killed by SIGKILL"),
    ({"exit_code": 137, "reasons": [LOST]}, Outcome.BROKEN, True, ExitCode.DONE, "killed by SIGKILL"),
    ({"exit_code": 137, "attempt": 3}, Outcome.FAILED, False, ExitCode.TRY_AGAIN, "attempt 3 of 3"),
    (
        {"exit_code": 137, "can_go_on": False},
        Outcome.FAILED,
        False,
        ExitCode.FAILED,
        "the command was killed by SIGKILL",
    ),
    (
        {"exit_code": 3, "can_go_on": False},
        Outcome.FAILED,
        False,
        ExitCode.FAILED,
        "the command ended with exit code 3",
    ),
    (
        {"exit_code": 143, "terminated": True, "can_go_on": False},
        Outcome.ENDED,
        False,
        ExitCode.TRY_AGAIN,
        "anew",
    ),
    ({"exit_code": 1, "reasons": [LOST, USER]}, Outcome.FAILED, False, ExitCode.WRONG_INPUT, "The loss is NaN"),
    ({"exit_code": 1, "reasons": [LOCKED]}, Outcome.BROKEN, True, ExitCode.DONE, "in use"),
    ({"exit_code": 1, "reasons": [LOST, BUG]}, Outcome.FAILED, False, ExitCode.FAILED, "KeyError"),
    ({"exit_code": 1, "reasons": [CUDA, LOST]}, Outcome.BROKEN, True, ExitCode.DONE, "ECC"),
    ({"exit_code": 1, "reasons": [LOST, ECC]}, Outcome.BROKEN, True, ExitCode.DONE, "a GPU of node n2 failed under"),
    ({"exit_code": 1, "reasons": [ECC], "attempt": 3}, Outcome.FAILED, False, ExitCode.TRY_AGAIN, "attempt 3 of 3"),
    ({"exit_code": 1, "reasons": [ECC], "can_go_on": False}, Outcome.FAILED, False, ExitCode.BAD_NODE, "exclude the"),
    ({"exit_code": 1, "reasons": [DRIVER]}, Outcome.FAILED, False, ExitCode.BAD_NODE, "take another node"),
    ({"exit_code": 1, "reasons": [CARD]}, Outcome.FAILED, False, ExitCode.BAD_NODE, "no kernels for the GPUs"),
    ({"exit_code": 1, "reasons": [INDEX, LOST]}, Outcome.FAILED, False, ExitCode.FAILED, "out of its range"),
    ({"exit_code": 1, "reasons": [MEMORY, LOST]}, Outcome.FAILED, False, ExitCode.FAILED, "smaller --batch-size"),
    ({"exit_code": 1, "reasons": [FULL]}, Outcome.FAILED, False, ExitCode.NO_SPACE, "no space"),
    ({"exit_code": 1, "no_space": True}, Outcome.FAILED, False, ExitCode.NO_SPACE, "make room"),
    ({"exit_code": 134, "behind": (2,)}, Outcome.BROKEN, True, ExitCode.DONE, "rank 2 stopped answering, others"),
    ({"exit_code": 1, "reasons": [BUG], "behind": (2,)}, Outcome.FAILED, False, ExitCode.FAILED, "KeyError"),
    ({"exit_code": 9}, Outcome.BROKEN, True, ExitCode.DONE, "exit code 9"),
]


@pytest.mark.parametrize(("seen", "outcome", "requeue", "code", "words"), TABLE)
def test_verdict(seen, outcome, requeue, code, words):
    verdict = judge(Seen(**{"attempt": 1, "max_attempts": 3, **seen}))
    assert (verdict.outcome, verdict.requeue, verdict.exit_code) == (outcome, requeue, code)
    assert words in verdict.reason
    assert "\n" not in verdict.reason


def test_the_node_of_a_bad_card_is_left_out_of_the_next_attempt():
    seen = Seen(exit_code=1, attempt=1, max_attempts=3, reasons=[LOST, ECC])
    assert judge(seen).bad_node == "n2"
    assert judge(replace(seen, attempt=3)).bad_node == ""
    assert judge(replace(seen, reasons=[CUDA])).bad_node == ""


@pytest.mark.parametrize(("before", "after"), [("(null)", "n2"), ("n[5-6]", "n[5-6],n2")])
def test_a_node_is_excluded_besides_those_that_are(monkeypatch, before, after):
    asked = []
    answers = {"show": f"   ReqNodeList=n1 ExcNodeList={before}\n", "update": ""}
    monkeypatch.setattr(supervisor, "_scontrol", lambda *words: (asked.append(words), answers[words[0]])[1])
    supervisor._exclude("7", supervisor._excluded_after("7", "n2"))
    assert asked[1:] == [("update", "JobId=7", f"ExcNodeList={after}")]


def test_a_controller_that_refuses_to_exclude_is_asked_again(monkeypatch):
    asked, answers = [], iter([None, "", ""])
    monkeypatch.setattr(supervisor.time, "sleep", lambda _: None)
    monkeypatch.setattr(supervisor, "_scontrol", lambda *words: (asked.append(words), next(answers))[1])
    supervisor._exclude("7", "n2")
    assert len(asked) == 2
    monkeypatch.setattr(supervisor, "_scontrol", lambda *words: asked.append(words))
    supervisor._exclude("7", "n2")
    assert len(asked) == 6


def test_the_rank_that_failed_by_itself_is_named():
    assert first_reason([LOST, replace(BUG, time=5.0), USER]) == USER
    assert first_reason([LOST]) is None


def test_attempts_are_kept_in_order_and_half_a_file_is_none(tmp_path):
    second = Attempt("7", 2, ("n1",), 20.0)
    first = Attempt("7", 1, ("n1", "n2"), 10.0).ended(Outcome.STOPPED, "saved", 0)
    for attempt in (second, first, Attempt("8", 1, ("n2",), 30.0)):
        attempt.write(tmp_path)
    (tmp_path / "attempts" / "9_1.json").write_text('{"job_id": "9"')
    assert [(a.job_id, a.number) for a in read_attempts(tmp_path)] == [("7", 1), ("7", 2), ("8", 1)]
    assert read_attempts(tmp_path, "7")[0] == first
    assert json.loads((tmp_path / "attempts" / "7_1.json").read_text())["nodes"] == ["n1", "n2"]
