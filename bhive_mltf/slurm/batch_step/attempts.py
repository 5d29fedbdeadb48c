"""The record of each start of a job: `<directory>/slurm/attempts/<job id>_<number>.json`."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bhive_mltf.files import atomic
from bhive_mltf.slurm.batch_step.verdict import Outcome

FOLDER_NAME = "attempts"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """One start of a job; times in seconds since 1970, `end` and `exit_code` None while it runs."""

    job_id: str
    number: int
    nodes: tuple[str, ...]
    start: float
    end: float | None = None
    outcome: str = Outcome.RUNNING.value
    reason: str = ""
    exit_code: int | None = None

    def write(self, folder: Path) -> None:
        """Write the record below the job's folder; a disk that takes nothing is no error, the exit code remains."""
        try:
            atomic.write_json(self._path(folder), asdict(self))
        except OSError as error:
            logger.warning("the record of attempt %d cannot be written: %s", self.number, error)

    def ended(self, outcome: Outcome, reason: str, exit_code: int) -> Attempt:
        """The same attempt, over."""
        return replace(self, end=time.time(), outcome=outcome.value, reason=reason, exit_code=exit_code)

    def _path(self, folder: Path) -> Path:
        return folder / FOLDER_NAME / f"{self.job_id}_{self.number}.json"


def read_attempts(folder: Path, job_id: str | None = None) -> list[Attempt]:
    """The attempts recorded below a job's folder, oldest first; those of one job if asked."""
    found = []
    for path in (folder / FOLDER_NAME).glob("*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append(Attempt(**{**content, "nodes": tuple(content["nodes"])}))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    kept = [attempt for attempt in found if job_id in (None, attempt.job_id)]
    return sorted(kept, key=lambda attempt: (attempt.start, attempt.number))
