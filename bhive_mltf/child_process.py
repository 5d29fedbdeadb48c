"""What a process that another one started does about that one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time

_PR_SET_PDEATHSIG = 1
_CHECK_INTERVAL = 1.0  # s


def end_with(parent: int) -> None:
    """End this process within seconds when the process `parent`, which started it, is gone, even by SIGKILL.

    Linux kills it at once (parent-death signal); a thread that looks at the parent every second covers the rest.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent,), name="watch-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_INTERVAL)
    os.kill(os.getpid(), signal.SIGKILL)
