"""The jobs of many directories; the client's list of the user's jobs answers for all of them at once."""

from __future__ import annotations

import logging
import time
from collections import defaultdict

from bhive_mltf.errors import QueryFailedError
from bhive_mltf.slurm import dispatch
from bhive_mltf.slurm.belief import Belief
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.job import JobSpec
from bhive_mltf.slurm.profiles import Profile
from bhive_mltf.slurm.record import JobRecord

logger = logging.getLogger(__name__)


class ManyJobs:
    """Jobs of one profile, each with a directory of its own."""

    def __init__(self, profile: Profile, client: Slurm | None = None) -> None:
        self.profile = profile
        self.client = client or Slurm.of(profile)
        self._records: dict[str, JobRecord] = {}
        self._beliefs: defaultdict[str, Belief] = defaultdict(Belief)

    def hand_in(self, spec: JobSpec) -> JobRecord:
        """The job of the spec's directory, see `dispatch.submit_or_attach`, which is looked at from now on."""
        record = dispatch.submit_or_attach(self.profile, spec, self.client)
        if record.job_id is None:
            raise QueryFailedError(f"the job of {record.directory} has no id yet: type the command again")
        self._records[record.job_id] = record
        return record

    def records(self) -> list[JobRecord]:
        """The jobs as they were last seen."""
        return list(self._records.values())

    def look(self) -> dict[str, JobRecord]:
        """What is known of the jobs, by their ids; without an answer what was known before."""
        try:
            for record in [record for record in self._records.values() if not record.is_over]:
                self._look_at(record)
        except QueryFailedError as error:
            logger.warning("%s; the jobs may go on, asking again", error)
        return dict(self._records)

    def _look_at(self, record: JobRecord) -> None:
        record, info = dispatch.look(record, self.client)
        job_id = info.job_id
        if self._beliefs[job_id].is_over(record, info, time.monotonic()):
            record = dispatch.end(record, info)
        self._records[job_id] = record
