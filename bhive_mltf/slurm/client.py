"""Talking to the scheduler by its client programs.

One question is asked for all jobs of the user. `squeue` is asked first, then `sacct` for what it no longer lists, then
`scontrol` where there is no accounting. No answer, or a slow one, is a QueryFailedError and never a verdict.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bhive_mltf.errors import QueryFailedError, SlurmError, SubmissionError
from bhive_mltf.slurm import parsing
from bhive_mltf.slurm.job import job_name
from bhive_mltf.slurm.local_cluster import running_conf
from bhive_mltf.slurm.parsing import JobInfo
from bhive_mltf.slurm.profiles import Profile
from bhive_mltf.slurm.states import JobState

logger = logging.getLogger(__name__)

# Variables of the submitting shell that a job gets, besides those that its profile names.
_PASSED: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "BASH_ENV", "MODULEPATH", "MODULESHOME"),
    *("LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)
_PASSED_PREFIXES: Final = ("SLURM_CONF", "BASH_FUNC_", "LMOD_")
# After these messages of sbatch a job may have been accepted all the same.
_NOT_REACHED: Final = ("contact", "timed out", "zero bytes", "connect", "communication", "socket")
SUBMIT_TIMEOUT_S: Final = 60.0
QUERY_TIMEOUT_S: Final = 30.0


@dataclass
class Slurm:
    """A cluster's scheduler, as this user sees it.

    slurm_conf : configuration of the cluster; empty: the site's own.
    accounting : whether `sacct` works; auto: found out at its first use.
    fresh_s : an answer about the user's jobs is good for this long, so that many followers ask one question.
    """

    slurm_conf: str = ""
    accounting: bool | Literal["auto"] = "auto"
    fresh_s: float = 1.0
    query_timeout_s: float = QUERY_TIMEOUT_S
    submit_timeout_s: float = SUBMIT_TIMEOUT_S

    def __post_init__(self) -> None:
        self._listed: tuple[float, list[JobInfo]] | None = None

    @classmethod
    def of(cls, profile: Profile) -> Slurm:
        """The scheduler of a profile; SlurmError when that is a lab and none runs."""
        return cls(
            str(running_conf()) if profile.cluster == "lab" else "", profile.accounting, profile.poll_seconds / 2
        )

    def submit(self, script: Path, passed: Iterable[str] = ()) -> str:
        """Submit a script from the folder it lies in; the job id.

        Parameters
        ----------
        passed : further variables of this process that the job gets.

        Raises
        ------
        SubmissionError : the scheduler refuses the job, or there is none.
        QueryFailedError : no answer in time; whether there is a job now is not known.
        """
        # a job submitted from inside another one is none of its steps
        environment = {**_environment_for_job(passed), **self._cluster()}
        # sbatch ends in time even when this process does not live to end it
        limit = ["timeout", "--kill-after=2", f"{self.submit_timeout_s:g}"] if shutil.which("timeout") else []
        command = [*limit, "sbatch", "--parsable", script.name]
        try:
            done = self._start(command, self.submit_timeout_s + 5, environment, script.parent)
        except FileNotFoundError:
            raise SubmissionError(
                "there is no sbatch here: type the command on a host of the cluster, or without --slurm"
            ) from None
        if done.returncode in (124, 137):
            raise QueryFailedError(f"sbatch gave no answer in {self.submit_timeout_s:g} s")
        if done.returncode != 0 and any(word in done.stderr.lower() for word in _NOT_REACHED):
            raise QueryFailedError(f"sbatch failed: {_last_words(done)}")
        if done.returncode != 0:
            raise SubmissionError(f"sbatch refused {script}: {_last_words(done)}")
        return parsing.job_id(done.stdout)

    def query(self, job_ids: Sequence[str]) -> dict[str, JobInfo]:
        """What is known about these jobs; one that the scheduler does not know any more is GONE.

        Raises
        ------
        QueryFailedError : no answer, or not in time.
        """
        listed = {info.job_id: info for info in self.mine()}
        found = {job_id: listed[job_id] for job_id in job_ids if job_id in listed}
        missing = [job_id for job_id in job_ids if job_id not in found]
        if missing and self.accounting is not False:
            found |= self._accounted(missing)
            missing = [job_id for job_id in missing if job_id not in found]
        for job_id in missing:
            found[job_id] = self._controlled(job_id)
        return found

    def mine(self) -> list[JobInfo]:
        """All jobs of this user that the controller knows, those that ended minutes ago included."""
        now = time.monotonic()
        if self._listed is None or now - self._listed[0] > self.fresh_s:
            command = ["squeue", f"--user={os.getuid()}", "--states=all", "--noheader", f"--Format={parsing.FORMAT}"]
            self._listed = (now, parsing.squeue(self._ask(command)))
        return self._listed[1]

    def forget(self) -> None:
        """Ask anew next time: something was just changed."""
        self._listed = None

    def find_by_name(self, token: str) -> list[JobInfo]:
        """The user's jobs with this token, in the queue or just ended; newest last."""
        self.forget()
        name = job_name(token)
        found = [info for info in self.mine() if info.name == name]
        return sorted(found, key=lambda info: (info.submitted, info.job_id))

    def position(self, job_id: str, partition: str = "") -> int | None:
        """Place in the queue of a waiting job, 1 for the next; None when the scheduler does not tell."""
        command = ["squeue", "--states=PENDING", "--noheader", "--sort=-p,i", "--format=%i"]
        if partition:
            command.append(f"--partition={partition}")
        try:
            waiting = self._ask(command).split()
        except QueryFailedError:
            return None
        return waiting.index(job_id) + 1 if job_id in waiting else None

    def cancel(self, job_id: str) -> None:
        """Cancel a job; one that has ended stays as it is. SlurmError when the scheduler refuses."""
        self._change(["scancel", job_id])

    def requeue(self, job_id: str) -> None:
        """Put a job back into the queue under its id; SlurmError when the scheduler refuses."""
        self._change(["scontrol", "requeue", job_id])

    def release(self, job_id: str) -> None:
        """Let a job that is held wait for nodes again; SlurmError when the scheduler refuses."""
        self._change(["scontrol", "release", job_id])

    def _change(self, command: Sequence[str]) -> None:
        done = self._run(command)
        self.forget()
        if done.returncode != 0:
            raise SlurmError(f"'{' '.join(command)}' failed: {_last_words(done)}")

    def _accounted(self, job_ids: Sequence[str]) -> dict[str, JobInfo]:
        command = ["sacct", "--allocations", "--noheader", "--parsable2", f"--format={parsing.SACCT_FORMAT}"]
        try:
            done = self._run([*command, f"--jobs={','.join(job_ids)}"])
        except QueryFailedError:
            if self.accounting == "auto":
                # a site without sacct, or with one that hangs: the controller is asked
                return {}
            raise
        if done.returncode == 0:
            return {info.job_id: info for info in parsing.sacct(done.stdout) if info.state.is_final}
        if self.accounting == "auto":
            if "disabled" in done.stderr:
                self.accounting = False
            return {}
        raise QueryFailedError(f"sacct failed: {_last_words(done)}")

    def _controlled(self, job_id: str) -> JobInfo:
        done = self._run(["scontrol", "--oneliner", "show", "job", job_id])
        if done.returncode == 0:
            return parsing.scontrol(done.stdout, job_id)
        if "Invalid job id" in done.stderr:
            return JobInfo(job_id, JobState.GONE)
        raise QueryFailedError(f"scontrol failed: {_last_words(done)}")

    def _ask(self, command: Sequence[str]) -> str:
        done = self._run(command)
        if done.returncode != 0:
            raise QueryFailedError(f"{command[0]} failed: {_last_words(done)}")
        return done.stdout

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            return self._start(command, self.query_timeout_s, {**os.environ, **self._cluster()}, None)
        except FileNotFoundError:
            raise QueryFailedError(f"there is no {command[0]} here: use a host of the cluster") from None

    def _start(
        self, command: Sequence[str], timeout_s: float, environment: Mapping[str, str], folder: Path | None
    ) -> subprocess.CompletedProcess[str]:
        # SLURM's own variables change what its programs print and do
        clean = {name: value for name, value in environment.items() if not _disturbs(name)}
        try:
            return subprocess.run(
                command,
                cwd=folder,
                env={**clean, "SLURM_TIME_FORMAT": "standard"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
                start_new_session=True,  # Ctrl-C is for the command, not for its question
            )
        except subprocess.TimeoutExpired:
            raise QueryFailedError(f"{command[0]} gave no answer in {timeout_s:g} s") from None

    def _cluster(self) -> dict[str, str]:
        return {"SLURM_CONF": self.slurm_conf} if self.slurm_conf else {}


def _disturbs(name: str) -> bool:
    return name.startswith(("SQUEUE_", "SACCT_", "SBATCH_", "SLURM_")) and name != "SLURM_CONF"


def _environment_for_job(passed: Iterable[str]) -> dict[str, str]:
    names = {*_PASSED, *passed}
    return {n: v for n, v in os.environ.items() if n in names or n.startswith(_PASSED_PREFIXES)}


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
