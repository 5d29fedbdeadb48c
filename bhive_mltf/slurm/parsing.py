"""What SLURM's client programs print, as objects."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from bhive_mltf.errors import QueryFailedError, SubmissionError
from bhive_mltf.slurm.states import JobState

# a suffix without a width: nothing is padded or cut
FORMAT: Final = (
    "JobArrayID:|,State:|,Reason:|,exit_code:|,RestartCnt:|,SubmitTime:|,StartTime:|,NodeList:|,Partition:|,Name:|"
)
SACCT_FORMAT: Final = "JobID,State,ExitCode,Submit,Start,NodeList,Partition,JobName"
# the same fields as scontrol calls them
_ENDING: Final = ("SubmitTime", "StartTime", "NodeList", "Partition", "JobName")
_SQUEUE: Final = ("JobId", "JobState", "Reason", "ExitCode", "Restarts", *_ENDING)
_SACCT: Final = ("JobId", "JobState", "ExitCode", *_ENDING)
# "JobHeldUser", "job requeued in held state", "launch failed requeued held", "job requeued in special exit state"
_HOLDS: Final = ("held", "special exit")
_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S"
_NOTHING: Final = frozenset({"", "None", "(null)", "N/A", "n/a", "Unknown", "None assigned"})


@dataclass(frozen=True)
class JobInfo:
    """What the scheduler says about a job; empty or None where it does not.

    exit_code : of the batch script.
    restarts : how often it was put back into the queue.
    submitted, start : seconds since 1970; of a waiting job, `start` is an estimate.
    position : place in the queue, 1 for the next.
    """

    job_id: str
    state: JobState
    name: str = ""
    reason: str = ""
    exit_code: int | None = None
    restarts: int = 0
    submitted: float = 0.0
    start: float | None = None
    nodes: str = ""
    partition: str = ""
    position: int | None = None

    @property
    def is_held(self) -> bool:
        """It waits until somebody releases it by `scontrol release`; its state or only its reason tells."""
        return self.state.is_held or (self.state.is_waiting and any(word in self._why for word in _HOLDS))

    @property
    def launch_failed(self) -> bool:
        """It is held since it could not be started on the node that it got."""
        return self.is_held and self._why.startswith("launch failed")

    @property
    def _why(self) -> str:
        """The reason in words; versions of SLURM write it with blanks or underscores."""
        return self.reason.lower().replace("_", " ")


def job_id(text: str) -> str:
    """The job id that `sbatch --parsable` prints, last line, before the cluster's name; SubmissionError if none."""
    lines = text.strip().splitlines()
    found = lines[-1].split(";")[0].strip() if lines else ""
    if not found.isdecimal():
        raise SubmissionError(f"sbatch printed {text.strip()!r}, which has no job id: look with 'squeue --me'")
    return found


def squeue(text: str) -> list[JobInfo]:
    """The jobs in the output of squeue with `FORMAT`; QueryFailedError for a line that is none."""
    infos = []
    for line in text.splitlines():
        if not line.strip():
            continue
        values = line.split("|", len(_SQUEUE) - 1)
        if len(values) != len(_SQUEUE):
            raise QueryFailedError(f"squeue printed {line!r}, which is no job")
        # the suffix of the last field
        values[-1] = values[-1].removesuffix("|")
        infos.append(_info(dict(zip(_SQUEUE, values, strict=True))))
    return infos


def sacct(text: str) -> Iterator[JobInfo]:
    """The jobs in the output of sacct with `SACCT_FORMAT`."""
    for line in text.splitlines():
        values = line.split("|", len(_SACCT) - 1)
        if len(values) == len(_SACCT):
            yield _info(dict(zip(_SACCT, values, strict=True)))


def scontrol(text: str, asked: str) -> JobInfo:
    """The job in the output of `scontrol --oneliner show job`."""
    # free texts (paths) may look like fields: the first of each name is SLURM's
    found: dict[str, str] = {}
    for name, value in re.findall(r"(?:^|\s)([A-Za-z/:_]+)=(\S*)", text):
        found.setdefault(name, value)
    if "JobState" not in found:
        raise QueryFailedError(f"scontrol printed nothing about job {asked}")
    return _info({**found, "JobId": asked})


def _info(words: Mapping[str, str]) -> JobInfo:
    """A job from the words of a program, by scontrol's names."""
    restarts = words.get("Restarts", "").strip()
    return JobInfo(
        job_id=words["JobId"],
        state=JobState.parse(words["JobState"]),
        name=words.get("JobName", ""),
        reason=_text(words.get("Reason", "")),
        exit_code=_exit_code(words.get("ExitCode", "")),
        restarts=int(restarts) if restarts.isdecimal() else 0,
        submitted=_seconds(words.get("SubmitTime", "")) or 0.0,
        start=_seconds(words.get("StartTime", "")),
        nodes=_text(words.get("NodeList", "")),
        partition=words.get("Partition", ""),
    )


def _text(value: str) -> str:
    return "" if value.strip() in _NOTHING else value.strip()


def _seconds(value: str) -> float | None:
    try:
        return time.mktime(time.strptime(value.strip(), _TIME_FORMAT))
    except ValueError:
        return None


def _exit_code(value: str) -> int | None:
    """The exit code in `code:signal`, or in the number of wait(2)."""
    code, colon, _ = value.strip().partition(":")
    if not code.isdecimal():
        return None
    return int(code) if colon else int(code) >> 8
