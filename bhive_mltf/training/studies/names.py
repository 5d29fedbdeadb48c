"""Files of a study's directory; no torch or Optuna here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

JOURNAL, TRIALS = "study.log", "trials"
BEST, TABLE, FIGURE = "best.json", "trials.json", "history.png"


def read_best(directory: Path) -> dict[str, Any]:
    """The content of `best.json`; empty where there is none."""
    try:
        found = json.loads((directory / BEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
