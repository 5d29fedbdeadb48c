"""How an attempt of a job ended, and whether it is requeued: a pure function of what was seen."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from bhive_mltf.ranks.files import RankError, StoppedNote
from bhive_mltf.ranks.gpu_errors import GpuCause
from bhive_mltf.ranks.time_outs import in_vain


class AttemptOutcome(Enum):
    """How one attempt ended."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"  # saved on a signal, goes on in the next attempt
    BROKEN = "broken"  # a rank or a node was lost, goes on from the last checkpoint
    ENDED = "ended"  # SLURM itself ends the job
    FAILED = "failed"


class ExitCode(IntEnum):
    """Exit codes of the batch step; SLURM keeps them where files may be lost."""

    DONE = 0
    FAILED = 1
    WRONG_INPUT = 65
    BAD_NODE = 69
    NO_SPACE = 74
    TRY_AGAIN = 75  # saved; the same command goes on


SENTENCES = {
    ExitCode.FAILED: "the job failed",
    ExitCode.WRONG_INPUT: "the job was given wrong input",
    ExitCode.BAD_NODE: "a node of the job is not usable",
    ExitCode.NO_SPACE: "no space is left where the outputs go: make room, then type the command again",
    ExitCode.TRY_AGAIN: "the job stopped with its work saved: type the command again and it goes on",
}
# Kinds of Python errors that the next attempt would meet again.
_DETERMINISTIC = frozenset(
    error.__name__
    for error in (
        AssertionError,
        AttributeError,
        ImportError,
        IndexError,
        KeyError,
        ModuleNotFoundError,
        NameError,
        NotImplementedError,
        SyntaxError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    )
)
# Errors of ours that another attempt may not meet.
_TRANSIENT = frozenset({"LockedError"})


@dataclass(frozen=True)
class Seen:
    """What is known when the ranks have ended.

    exit_code : of srun, or of the command.
    stopped : rank 0's note that all stopped in order, None without it.
    reasons : errors that ranks left, in any order.
    behind : ranks that others waited for in vain.
    terminated : SLURM told the batch step to end.
    no_space : nothing can be written where the outputs go.
    can_go_on : ranks go on from a checkpoint, a command does not.
    """

    exit_code: int
    attempt: int
    max_attempts: int
    stopped: StoppedNote | None = None
    reasons: Sequence[RankError] = ()
    behind: Sequence[int] = ()
    terminated: bool = False
    no_space: bool = False
    can_go_on: bool = True


@dataclass(frozen=True)
class Verdict:
    """How the attempt ended, why, and whether the job is to be put back into the queue, there without `bad_node`."""

    outcome: AttemptOutcome
    reason: str
    exit_code: ExitCode
    requeue: bool = False
    bad_node: str = ""


def judge(seen: Seen) -> Verdict:
    """How the attempt ended, and what follows."""
    if seen.exit_code == 0 and seen.stopped is None:
        return Verdict(AttemptOutcome.DONE, "done", ExitCode.DONE)
    if seen.terminated:
        saved = _saved(seen.stopped) if seen.stopped else "the last checkpoint holds"
        saved = saved if seen.can_go_on else "the same command begins anew"
        return Verdict(AttemptOutcome.ENDED, f"SLURM ended the job; {saved}", ExitCode.TRY_AGAIN)
    if seen.stopped is not None:
        why = f"stopped by {seen.stopped.signal or 'a signal'} and {_saved(seen.stopped)}"
        return _again(seen, AttemptOutcome.STOPPED, why)
    return _failed(seen)


def _saved(note: StoppedNote) -> str:
    # ranks of others do not tell their step
    return f"saved at step {note.step}" if note.step >= 0 else "saved"


def _failed(seen: Seen) -> Verdict:
    reason = first_reason(seen.reasons)
    who = "a rank" if seen.can_go_on else "the command"
    what = in_vain(seen.behind) if seen.behind else _by_exit_code(seen.exit_code, who)
    what = error_sentence(reason) if reason else what
    if seen.no_space or any(r.no_space for r in seen.reasons):
        return Verdict(AttemptOutcome.FAILED, f"{SENTENCES[ExitCode.NO_SPACE]} ({what})", ExitCode.NO_SPACE)
    if reason and reason.cause:
        return _gpu_failed(seen, reason)
    if reason and reason.kind not in _TRANSIENT:
        if reason.by_user:
            return Verdict(AttemptOutcome.FAILED, what, ExitCode.WRONG_INPUT)
        if reason.kind in _DETERMINISTIC:
            return Verdict(AttemptOutcome.FAILED, what, ExitCode.FAILED)
    if not seen.can_go_on:
        return Verdict(AttemptOutcome.FAILED, what, ExitCode.FAILED)
    return _again(seen, AttemptOutcome.BROKEN, what)


def _gpu_failed(seen: Seen, reason: RankError) -> Verdict:
    if reason.cause != GpuCause.BAD_NODE:
        # the next attempt would meet it again
        of_node = reason.cause in {GpuCause.OLD_DRIVER, GpuCause.UNKNOWN_CARD}
        code = ExitCode.BAD_NODE if of_node else ExitCode.FAILED
        return Verdict(AttemptOutcome.FAILED, error_sentence(reason), code)
    what = f"a GPU of node {reason.node} failed under rank {reason.rank} ({reason.first_line})"
    if not seen.can_go_on:
        what = f"{what}: exclude the node and submit again"
        return Verdict(AttemptOutcome.FAILED, what, ExitCode.BAD_NODE)
    verdict = _again(seen, AttemptOutcome.BROKEN, what)
    return replace(verdict, bad_node=reason.node) if verdict.requeue else verdict


def _again(seen: Seen, outcome: AttemptOutcome, why: str) -> Verdict:
    if seen.attempt < seen.max_attempts:
        return Verdict(outcome, why, ExitCode.DONE, requeue=True)
    return Verdict(
        AttemptOutcome.FAILED,
        f"{why}; that was attempt {seen.attempt} of {seen.max_attempts}: type the command again and it goes on",
        ExitCode.TRY_AGAIN,
    )


def first_reason(reasons: Sequence[RankError]) -> RankError | None:
    """The reason of the rank that failed by itself, not of those that lost it; None when no rank left one of its own.

    A rank that was killed leaves none: the others then only tell that they lost it.
    """
    own = [reason for reason in reasons if not reason.lost]
    return min(own, key=lambda reason: reason.time) if own else None


def error_sentence(reason: RankError) -> str:
    """A rank's error in one line."""
    return f"rank {reason.rank} failed ({reason.kind}: {reason.explanation or reason.first_line})"


def _by_exit_code(code: int, who: str) -> str:
    number = code - 128 if code > 128 else -code if code < 0 else 0
    try:
        return f"{who} was killed by {signal.Signals(number).name}" if number else f"{who} ended with exit code {code}"
    except ValueError:
        return f"{who} ended with exit code {code}"
