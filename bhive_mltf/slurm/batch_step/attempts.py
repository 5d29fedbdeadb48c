"""Records of the batch step, in the folder `slurm/` of the outputs.

`attempts/<job id>_<number>.json` is the record of one start of a job, `outcome.json` says how the last one ended.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bhive_mltf.files import atomic
from bhive_mltf.files.records import read_dataclass
from bhive_mltf.slurm.batch_step.verdict import AttemptOutcome
from bhive_mltf.slurm.job import OUTCOME_NAME

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
    outcome: str = AttemptOutcome.RUNNING.value
    reason: str = ""
    exit_code: int | None = None

    def write(self, folder: Path) -> None:
        """Write the record below the job's folder; a disk that takes nothing is no error, the exit code remains."""
        _write(folder / FOLDER_NAME / f"{self.job_id}_{self.number}.json", self, f"the record of attempt {self.number}")

    def ended(self, outcome: AttemptOutcome, reason: str, exit_code: int) -> Attempt:
        """The same attempt, over."""
        return replace(self, end=time.time(), outcome=outcome.value, reason=reason, exit_code=exit_code)


@dataclass(frozen=True)
class JobOutcome:
    """How a job's latest start ended, for the command that follows it.

    token : of the job, so that the file of an earlier job is not taken for it.
    requeued : the job puts itself back into the queue; exit_code is then 0.
    time : seconds since 1970.
    """

    token: str
    outcome: str
    reason: str = ""
    job_id: str = ""
    attempt: int = 1
    exit_code: int = 0
    requeued: bool = False
    time: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether the job did its work."""
        return self.outcome == AttemptOutcome.DONE.value

    def write(self, folder: Path) -> None:
        """Write it to the job's folder; a disk that takes nothing is no error, the exit code remains."""
        _write(folder / OUTCOME_NAME, self, "the outcome")

    @classmethod
    def read(cls, folder: Path, token: str) -> JobOutcome | None:
        """The outcome of the job with this token; None when it left none."""
        found = read_dataclass(cls, folder / OUTCOME_NAME)
        return found if found is not None and found.token == token else None


def _write(path: Path, record: Attempt | JobOutcome, what: str) -> None:
    try:
        atomic.write_json(path, asdict(record))
    except OSError as error:
        logger.warning("%s cannot be written: %s", what, error)


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
