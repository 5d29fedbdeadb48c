"""Files that ranks leave: logs, reasons of failures, progress, and the note that they stopped in order.

The one place for their names and fields: ranks write them, launchers, jobs and commands read them. No torch here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from bhive_mltf.files import atomic
from bhive_mltf.files.records import read_dataclass

LOG_FOLDER = "logs"
PROGRESS_NAME = "progress.json"
STOPPED_NAME = "stopped.json"
# Set by a job for its ranks: the folder of the job's own files, beside the outputs.
JOB_FOLDER_VARIABLE = "BHIVE_MLTF_JOB_FOLDER"
# Set by a job that has GPUs: no rank of it may compute on a processor instead.
NEEDS_GPU_VARIABLE = "BHIVE_MLTF_NEEDS_GPU"


def log_path(directory: Path, rank: int | str) -> Path:
    """Where the errors and warnings of a rank go."""
    return directory / LOG_FOLDER / f"rank_{rank}.log"


def error_path(directory: Path, rank: int | str) -> Path:
    """Where a rank leaves the reason of its failure."""
    return directory / LOG_FOLDER / f"rank_{rank}.error.json"


def read_end(path: Path, n_bytes: int, start: int = 0) -> bytes:
    """The last bytes of a file, none from before `start`; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - n_bytes, start))
            return file.read()
    except OSError:
        return b""


@dataclass(frozen=True)
class RankError:
    """Why a rank failed.

    time : seconds since 1970; kind, message : of the Python error.
    lost : only the connection to another rank was lost; by_user : an error that the user can mend.
    no_space : the disk was full.
    cause, explanation : of `gpu_errors`, empty for what is no failure of a GPU; node : where the rank ran.
    """

    rank: int
    time: float
    kind: str
    message: str
    lost: bool = False
    by_user: bool = False
    no_space: bool = False
    cause: str = ""
    explanation: str = ""
    node: str = ""
    traceback: str = ""

    @property
    def first_line(self) -> str:
        """First line of the message."""
        return next(iter(self.message.strip().splitlines()), "")

    def write(self, directory: Path) -> None:
        """Write it to `logs/rank_<r>.error.json` of the training's directory."""
        atomic.write_json(error_path(directory, self.rank), asdict(self))

    @classmethod
    def read(cls, directory: Path, rank: int) -> RankError | None:
        """The error of a rank; None when it left none, or half of one."""
        return read_dataclass(cls, error_path(directory, rank))

    @classmethod
    def read_all(cls, directory: Path) -> Iterator[RankError]:
        """The errors of all ranks that left one."""
        for path in sorted(directory.glob(f"{LOG_FOLDER}/{error_path(directory, '*').name}")):
            found = read_dataclass(cls, path)
            if found is not None:
                yield found


def prepare_logs(directory: Path, size: int) -> None:
    """Make the folder of logs, and remove the errors of an earlier start of so many ranks."""
    (directory / LOG_FOLDER).mkdir(parents=True, exist_ok=True)
    for rank in range(size):
        error_path(directory, rank).unlink(missing_ok=True)


@dataclass(frozen=True)
class StoppedNote:
    """Rank 0's note for its job: all ranks stopped in order after `step` steps, with everything saved.

    attempt : the start of the job, from 1; signal : its name, empty when it came to another rank.
    """

    attempt: int
    step: int
    signal: str
    time: float = field(default_factory=time.time)

    def write(self, folder: Path) -> None:
        """Write it to the job's folder."""
        atomic.write_json(folder / STOPPED_NAME, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> StoppedNote | None:
        """The note in a job's folder; None without one."""
        return read_dataclass(cls, folder / STOPPED_NAME)


@dataclass(frozen=True)
class RankProgress:
    """How far the ranks are; None where they do not say.

    epoch, of_epochs : from 1; eta_s : seconds left; time : when that was written, seconds since 1970.
    """

    epoch: int | None = None
    of_epochs: int | None = None
    step: int | None = None
    jets_per_s: float | None = None
    eta_s: float | None = None
    time: float = 0.0

    def write(self, path: Path) -> None:
        """Write it; OSError when the disk takes nothing."""
        atomic.write_json(path, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The progress in a job's folder; None when there is none, or it cannot be read just now."""
        return read_dataclass(cls, folder / PROGRESS_NAME)
