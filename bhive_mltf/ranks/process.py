"""A rank as a process: it ends with its launcher, leaves the reason of a failure, and exits without a crash."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from bhive_mltf.child_process import end_with
from bhive_mltf.errors import BhiveError
from bhive_mltf.files import disk
from bhive_mltf.ranks import gpu_errors, signals, srun
from bhive_mltf.ranks.files import RankError

LAUNCHER_VARIABLE = "BHIVE_MLTF_LAUNCHER_PID"
# What messages of gloo and NCCL say when the other side is gone.
_LOST = ("gloo/", "Connection closed by peer", "Connection reset", "NCCL", "ProcessGroup", "TCPStore", "Broken pipe")
logger = logging.getLogger(__name__)


def run_rank(arguments: Sequence[str], work: Callable[[Path], int]) -> NoReturn:
    """Do the work of a rank on the plan named by the only argument, see `run_reporting`, and end the process."""
    # before the slow imports: the launcher may go away, and a batch system may warn, at any time
    begin_rank()
    if len(arguments) != 1:
        spec = sys.modules["__main__"].__spec__
        module = spec.name.removesuffix(".__main__") if spec is not None else sys.argv[0]
        sys.stderr.write(f"usage: python -m {module} PLAN\n")
        leave(2)
    path = Path(arguments[0])
    leave(run_reporting(path.absolute().parent, lambda: work(path)))


def run_reporting(directory: Path, work: Callable[[], int]) -> int:
    """Do a rank's work; its exit code.

    It is 1 for an error, whose reason is left in `directory` (`ranks.files`), and `signals.NO_SPACE_EXIT_CODE` where
    the disk is full: that reason may find no room there.
    """
    os.environ.pop("MLFLOW_RUN_ID", None)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - reported to the launcher and in the log
        _leave_reason(directory, error)
        return signals.NO_SPACE_EXIT_CODE if disk.is_out_of_space(error) else 1


def _leave_reason(directory: Path, error: Exception) -> None:
    rank = int(os.environ.get("RANK", "0"))
    text = traceback.format_exc()
    by_user = isinstance(error, BhiveError)
    cause = None if by_user else gpu_errors.cause_of(error)
    # NCCL's message of a card that failed here is no message of another rank
    lost = not by_user and cause is None and isinstance(error, RuntimeError) and any(w in str(error) for w in _LOST)
    explanation = gpu_errors.explain(error) if cause else ""
    if by_user:
        logger.error("rank %d: %s", rank, error)
    elif lost:
        logger.error("rank %d lost the connection to another rank", rank)
    else:
        logger.error("rank %d failed%s:\n%s", rank, f": {explanation}" if explanation else "", text)
    reason = RankError(
        rank=rank,
        time=time.time(),
        kind=type(error).__name__,
        message=str(error),
        lost=lost,
        by_user=by_user,
        no_space=disk.is_out_of_space(error),
        cause=cause or "",
        explanation=explanation,
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        traceback=text,
    )
    try:
        reason.write(directory)
    except OSError:
        logger.exception("rank %d cannot write its error file", rank)


@contextlib.contextmanager
def slow_imports() -> Iterator[None]:
    """Import large packages without Python's collector, which looks at all that they make again and again.

    It leaves alone what was made by then, later too: a rank starts sooner, and its steps are not held up by that.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def begin_rank() -> None:
    """What a rank's process does first, before its slow imports: see `end_with_launcher`, `signals`, `srun`."""
    end_with_launcher()
    if srun.is_srun_task():
        signals.catch_early()
        srun.take_identity()


def end_with_launcher() -> None:
    """Make this process end within seconds when its launcher is gone, even by SIGKILL.

    Does nothing for a process that was started by hand. Linux kills it at once (parent-death signal); a thread
    that looks at the parent every second covers the rest, and takes the loader's workers along. For a task of srun
    the launcher is slurmstepd, and the thread alone looks: the signal would come when only a thread of it ends.
    """
    if srun.is_srun_task():
        end_with(os.getppid(), parent_signal=False, whole_group=True)
        return
    launcher = os.environ.pop(LAUNCHER_VARIABLE, None)
    if launcher is None and "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = str(os.getppid())  # torchrun typed by hand: the parent is its agent
    if launcher is not None:
        end_with(int(launcher), whole_group=True)


def end_with_parent() -> None:
    """The same for a command that runs in a forked worker of the one that was typed (`law run --workers 2`)."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    end_with(parent.pid, whole_group=True)


def leave(code: int) -> NoReturn:
    """End the process after its exit handlers, but without taking the interpreter down.

    At that point background threads of libraries (gloo, autograd) may still want the interpreter's lock; Python
    ends such a thread by unwinding its C++ frames, which aborts the process ("terminate called without an active
    exception", exit code 134) although the training is done.
    """
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
