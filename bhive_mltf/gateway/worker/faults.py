"""Points at which a test kills the process, to see what the next one makes of it."""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "MLTF_FAULT"


def point(name: str) -> None:
    """End this process with SIGKILL if the variable `MLTF_FAULT` names this point; else nothing."""
    if os.environ.get(VARIABLE) == name:
        os.kill(os.getpid(), signal.SIGKILL)
