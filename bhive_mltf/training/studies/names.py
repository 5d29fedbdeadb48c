"""Files of a study's directory; no torch or Optuna here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bhive_mltf.files.records import read_object

JOURNAL, TRIALS = "study.log", "trials"
BEST, TABLE, FIGURE = "best.json", "trials.json", "history.png"


def read_best(directory: Path) -> dict[str, Any]:
    """The content of `best.json`; empty where there is none."""
    return read_object(directory / BEST)
