"""Life and death of a rank's process: it does not outlive its launcher, and it ends without a crash."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import NoReturn

from bhive_mltf.ranks import signals, srun

LAUNCHER_VARIABLE = "BHIVE_MLTF_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1
_CHECK_INTERVAL = 1.0  # s


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
        threading.Thread(target=_watch, args=(os.getppid(),), name="watch-launcher", daemon=True).start()
        return
    launcher = _launcher()
    if launcher is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:  # gone before the signal was set
        _kill_group()
    threading.Thread(target=_watch, args=(launcher,), name="watch-launcher", daemon=True).start()


def end_with_parent() -> None:
    """The same for a command that runs in a forked worker of the one that was typed (`law run --workers 2`)."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent.pid,), name="watch-parent", daemon=True).start()


def _launcher() -> int | None:
    given = os.environ.pop(LAUNCHER_VARIABLE, None)
    if given is not None:
        return int(given)
    # torchrun typed by hand: the parent is its agent
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_CHECK_INTERVAL)
    _kill_group()


def _kill_group() -> NoReturn:
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(1)


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
