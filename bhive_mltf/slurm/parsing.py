"""What SLURM's client programs print, as objects."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bhive_mltf.errors import QueryFailedError, SubmissionError
from bhive_mltf.slurm.states import JobState

_FIELDS: Final = (
    *("JobArrayID", "State", "Reason", "exit_code", "RestartCnt", "SubmitTime", "StartTime", "NodeList", "Partition"),
    "Name",
)
# a suffix without a width: nothing is padded or cut
FORMAT: Final = ",".join(f"{name}:|" for name in _FIELDS)
SACCT_FORMAT: Final = "JobID,State,ExitCode,Submit,Start,NodeList,Partition,JobName"
_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S"
_NOTHING: Final = frozenset({"", "None", "(null)", "N/A", "n/a", "Unknown", "None assigned"})


@dataclass(frozen=True)
class JobInfo:
    """What the scheduler says about a job; empty or None where it does not.

    exit_code : of the batch script; `signal` : the signal that ended it, 0 for none.
    restarts : how often it was put back into the queue.
    submitted, start : seconds since 1970; of a waiting job, `start` is an estimate.
    position : place in the queue, 1 for the next.
    """

    job_id: str
    state: JobState
    name: str = ""
    reason: str = ""
    exit_code: int | None = None
    signal: int = 0
    restarts: int = 0
    submitted: float = 0.0
    start: float | None = None
    nodes: str = ""
    partition: str = ""
    position: int | None = None


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
        values = line.split("|", len(_FIELDS) - 1)
        if len(values) != len(_FIELDS):
            raise QueryFailedError(f"squeue printed {line!r}, which is no job")
        job, state, reason, status, restarts, submitted, start, nodes, partition, name = values
        exit_code, signal = _wait_status(status)
        infos.append(
            JobInfo(
                job_id=job,
                state=JobState.parse(state),
                # the suffix of the last field
                name=name.removesuffix("|"),
                reason=_text(reason),
                exit_code=exit_code,
                signal=signal,
                restarts=_number(restarts),
                submitted=_seconds(submitted) or 0.0,
                start=_seconds(start),
                nodes=_text(nodes),
                partition=partition,
            )
        )
    return infos


def sacct(text: str) -> Iterator[JobInfo]:
    """The jobs in the output of sacct with `SACCT_FORMAT`."""
    for line in text.splitlines():
        values = line.split("|")
        if len(values) < 8:
            continue
        job, state, status, submitted, start, nodes, partition = values[:7]
        exit_code, signal = _pair(status)
        yield JobInfo(
            job_id=job,
            state=JobState.parse(state),
            name="|".join(values[7:]),
            exit_code=exit_code,
            signal=signal,
            submitted=_seconds(submitted) or 0.0,
            start=_seconds(start),
            nodes=_text(nodes),
            partition=partition,
        )


def scontrol(text: str, asked: str) -> JobInfo:
    """The job in the output of `scontrol --oneliner show job`."""
    # free texts (paths) may look like fields: the first of each name is SLURM's
    found: dict[str, str] = {}
    for name, value in re.findall(r"(?:^|\s)([A-Za-z/:_]+)=(\S*)", text):
        found.setdefault(name, value)
    if "JobState" not in found:
        raise QueryFailedError(f"scontrol printed nothing about job {asked}")
    exit_code, signal = _pair(found.get("ExitCode", ""))
    return JobInfo(
        job_id=asked,
        state=JobState.parse(found["JobState"]),
        name=found.get("JobName", ""),
        reason=_text(found.get("Reason", "")),
        exit_code=exit_code,
        signal=signal,
        restarts=_number(found.get("Restarts", "")),
        submitted=_seconds(found.get("SubmitTime", "")) or 0.0,
        start=_seconds(found.get("StartTime", "")),
        nodes=_text(found.get("NodeList", "")),
        partition=found.get("Partition", ""),
    )


def _text(value: str) -> str:
    return "" if value.strip() in _NOTHING else value.strip()


def _number(value: str) -> int:
    return int(value) if value.strip().isdecimal() else 0


def _seconds(value: str) -> float | None:
    try:
        return time.mktime(time.strptime(value.strip(), _TIME_FORMAT))
    except ValueError:
        return None


def _wait_status(value: str) -> tuple[int | None, int]:
    """Exit code and signal from the number of wait(2), or from `code:signal`."""
    if ":" in value:
        return _pair(value)
    if not value.strip().isdecimal():
        return None, 0
    status = int(value)
    return status >> 8, status & 0x7F


def _pair(value: str) -> tuple[int | None, int]:
    code, _, signal = value.partition(":")
    return (int(code) if code.isdecimal() else None), _number(signal)
