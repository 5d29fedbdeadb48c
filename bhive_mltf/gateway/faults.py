"""Points at which a test stops API or worker, to kill it, or a service behind it, just there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

VARIABLE: Final = "MLTF_FAULTS"
_LOOK_S: Final = 0.01


def point(name: str) -> None:
    """Wait here once if the folder that `MLTF_FAULTS` names has a file `name`; without that variable nothing.

    The file is called `name.held` while something waits here, and its removal lets it go on.
    """
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return
    held = Path(folder, f"{name}.held")
    try:
        Path(folder, name).rename(held)
    except FileNotFoundError:
        return
    while held.exists():
        time.sleep(_LOOK_S)
