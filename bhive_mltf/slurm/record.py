"""`slurm/job.json`: the job that belongs to an output directory.

The record is written before the job is submitted, with a token that is part of the job's name, so that a command that
dies in between leaves a trace by which the next one finds the job.
"""

from __future__ import annotations

import getpass
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bhive_mltf.errors import SlurmError
from bhive_mltf.files import atomic
from bhive_mltf.slurm.job import FOLDER, JobSpec, job_name
from bhive_mltf.slurm.profiles import Profile
from bhive_mltf.slurm.states import JobState

RECORD_NAME: Final = "job.json"
logger = logging.getLogger(__name__)


class EarlierJob(BaseModel):
    """A job of this directory that is over."""

    model_config = ConfigDict(frozen=True)

    token: str
    job_id: str | None
    state: JobState
    message: str = ""
    created: float
    ended: float | None = None


class JobRecord(BaseModel):
    """A job, from before it is submitted until it is over.

    job_id : None while it is not known whether the scheduler has the job.
    state : as last seen.
    timeout_step : how far the ranks were when the job was last put back after its time limit; -1: never.
    was_released : its launch failed, SLURM held it, and it was released; that is done once.
    message : why it is over.
    created, submitted, ended : seconds since 1970.
    attempts : earlier jobs of this directory, oldest first.
    """

    model_config = ConfigDict(frozen=True)

    token: str
    name: str
    directory: Path
    profile: str
    slurm_conf: str = ""
    user: str = Field(default_factory=getpass.getuser)
    host: str = Field(default_factory=socket.gethostname)
    created: float = Field(default_factory=time.time)
    job_id: str | None = None
    submitted: float | None = None
    state: JobState = JobState.UNKNOWN
    exit_code: int | None = None
    restarts: int = 0
    timeout_step: int = -1
    was_released: bool = False
    message: str = ""
    ended: float | None = None
    attempts: tuple[EarlierJob, ...] = ()

    @classmethod
    def new(cls, profile: Profile, spec: JobSpec, slurm_conf: str, before: JobRecord | None) -> JobRecord:
        """A record of a job that is about to be submitted."""
        return cls(
            token=spec.token,
            name=spec.name,
            directory=spec.directory,
            profile=profile.source,
            slurm_conf=slurm_conf,
            attempts=(*before.attempts, before.as_earlier()) if before is not None else (),
        )

    @property
    def is_over(self) -> bool:
        """The job neither waits nor runs."""
        return self.ended is not None

    @property
    def job_name(self) -> str:
        """The job's name in the queue."""
        return job_name(self.token)

    @property
    def folder(self) -> Path:
        """Where the job's files lie."""
        return self.directory / FOLDER

    @property
    def log(self) -> Path:
        """Output of the batch script."""
        return self.folder / f"job_{self.job_id}.log"

    def as_earlier(self) -> EarlierJob:
        """What is kept of the job once the next one is submitted."""
        return EarlierJob(**{name: getattr(self, name) for name in EarlierJob.model_fields})

    def changed(self, **values: Any) -> JobRecord:  # noqa: ANN401 - fields of the record
        """The same with other values, written; an unchanged record is not.

        A full disk is no error here: what was written before is enough for the next command to find the job.
        """
        if all(getattr(self, name) == value for name, value in values.items()):
            return self
        record = self.model_copy(update=values)
        try:
            record.write()
        except OSError as error:
            logger.warning("the record of job %s cannot be written: %s", record.job_id, error)
        return record

    def write(self) -> None:
        """Write the record to its directory as a whole."""
        atomic.write_text(self.folder / RECORD_NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, directory: str | Path) -> JobRecord | None:
        """The record of an output directory, None when it has none; SlurmError when it cannot be read.

        The directory is where the record lies now, whatever it was called when the job was submitted.
        """
        path = Path(directory) / FOLDER / RECORD_NAME
        try:
            record = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise SlurmError(
                f"{path} is not a record of a job ({reason}): look with 'squeue --me' whether one runs, then remove it"
            ) from None
        return record.model_copy(update={"directory": Path(directory).absolute()})


def find_all(folder: Path) -> Iterator[JobRecord]:
    """The records below a folder of outputs, in the order of their paths."""
    for path in sorted(folder.glob(f"**/{FOLDER}/{RECORD_NAME}")):
        record = JobRecord.read(path.parents[1])
        if record is not None:
            yield record
