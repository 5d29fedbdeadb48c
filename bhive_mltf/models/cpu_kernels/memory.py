"""Memory that a step gives back stays with the process, on a CPU.

A step of ParT takes and gives back some hundred megabytes in pieces that glibc maps anew each time: 40,000 page faults
and about a twentieth of its time. With these settings the next step finds the pages of the last one.
"""

from __future__ import annotations

import ctypes
import os
import sys

import torch

VARIABLE = "BHIVE_MLTF_KEEP_MEMORY"
"""Set to 0 to leave glibc's defaults."""
# of malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST, _LARGEST_BEFORE_2_35 = 2**31 - 1, 1 << 30, 32 << 20


def keep_memory(device: torch.device) -> bool:
    """Make malloc keep what is freed, for the rest of this process; whether it does."""
    if device.type != "cpu" or not sys.platform.startswith("linux") or os.environ.get(VARIABLE) == "0":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_THRESHOLD, _LARGEST_BEFORE_2_35)
    return bool(kept and mallopt(_TRIM_THRESHOLD, _NEVER))
