"""What a process that another one started does about that one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_CHECK_INTERVAL = 1.0  # s


def end_with(parent: int, *, parent_signal: bool = True, whole_group: bool = False) -> None:
    """End this process within seconds when the process `parent`, which started it, is gone, even by SIGKILL.

    Parameters
    ----------
    parent_signal : let Linux kill it at once (parent-death signal, which comes when the thread that started this
        process ends); a thread that looks at the parent every second covers the rest.
    whole_group : take along the processes of the group that this one leads.
    """
    if parent_signal:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # gone before the signal was set
            _end(whole_group)
    threading.Thread(target=_watch, args=(parent, whole_group), name="watch-parent", daemon=True).start()


def _watch(parent: int, whole_group: bool) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_INTERVAL)
    _end(whole_group)


def _end(whole_group: bool) -> NoReturn:
    if whole_group and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(1)
