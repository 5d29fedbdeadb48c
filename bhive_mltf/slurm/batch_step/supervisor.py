"""The batch step of a job: check the nodes, start the ranks, judge how they ended, requeue the job."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from bhive_mltf.files import checks, disk
from bhive_mltf.ranks.files import RankError, StoppedNote
from bhive_mltf.ranks.time_outs import log_sizes, waited_for
from bhive_mltf.slurm.batch_step import preflight, staging, steps
from bhive_mltf.slurm.batch_step.allocation import Allocation
from bhive_mltf.slurm.batch_step.attempts import Attempt, JobOutcome
from bhive_mltf.slurm.batch_step.verdict import AttemptOutcome, ExitCode, Seen, Verdict, judge
from bhive_mltf.slurm.job import OUTCOME_NAME, JobSpec

REQUEUE_TRIES_S = 600.0
# SLURM ends the batch step of a job that was put back within this time.
_END_WITHIN_S = 120.0
_EXCLUDE_TRIES = 4
_EXCLUDED = re.compile(r"\bExcNodeList=(\S+)")
logger = logging.getLogger(__name__)


class Supervisor:
    """One start of a job."""

    def __init__(self, spec: JobSpec, allocation: Allocation) -> None:
        self._spec, self._allocation = spec, allocation
        self._attempt = Attempt(allocation.job_id, allocation.attempt, allocation.nodes, time.time())
        self._terminated = False
        self._variables: dict[str, str] = {}
        self._log_sizes: dict[int, int] = {}

    @classmethod
    def of(cls, spec_path: Path) -> Supervisor:
        """The supervisor of this batch step; ProfileError for a file that is no spec."""
        return cls(JobSpec.read(spec_path), Allocation.of())

    def run(self) -> int:
        """Run the job once; the exit code of the batch step."""
        with self._noting_signals():
            self._attempt.write(self._spec.folder)
            (self._spec.folder / OUTCOME_NAME).unlink(missing_ok=True)
            logger.info(
                "job %s, attempt %d, on %s",
                self._allocation.job_id,
                self._attempt.number,
                ", ".join(self._attempt.nodes),
            )
            verdict = self._run()
            logger.info("%s: %s", verdict.outcome.value, verdict.reason)
            self._record(verdict)
            # after the record: a job that SLURM ends has little time
            staging.remove_copies(self._spec, self._variables, 5.0 if self._terminated else staging.REMOVE_WITHIN_S)
            return self._requeue(verdict) if verdict.requeue else int(verdict.exit_code)

    def _run(self) -> Verdict:
        spec = self._spec
        try:
            variables = steps.environment(spec, self._allocation)
            problem = preflight.check_nodes(self._allocation, spec, variables)
            if problem:
                return Verdict(AttemptOutcome.FAILED, problem, ExitCode.BAD_NODE)
            steps.clear(spec)
            # attempts add to the same logs
            self._log_sizes = log_sizes(spec.directory, spec.nodes * spec.ranks_per_node)
            self._variables = staging.make_copies(spec, self._allocation, variables)
            code = self._wait(steps.start(spec, self._variables))
        except OSError as error:
            code = ExitCode.NO_SPACE if disk.is_out_of_space(error) else ExitCode.FAILED
            return Verdict(AttemptOutcome.FAILED, f"the job cannot start its ranks: {error}", code)
        verdict = judge(self._seen(code))
        if verdict.outcome is AttemptOutcome.DONE and spec.afterwards:
            done = subprocess.run(spec.afterwards, env=variables, check=False)
            logger.info("what follows the ranks ended with exit code %d", done.returncode)
        return verdict

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=5.0)
                logger.info("%s ended with exit code %d", "the ranks" if self._spec.kind == "ranks" else "it", code)
                return code

    def _seen(self, code: int) -> Seen:
        spec = self._spec
        stopped = StoppedNote.read(spec.folder)
        return Seen(
            exit_code=code,
            attempt=self._attempt.number,
            max_attempts=spec.max_attempts if spec.requeue else 1,
            stopped=stopped if stopped is not None and stopped.attempt == self._attempt.number else None,
            reasons=tuple(RankError.read_all(spec.directory)),
            behind=waited_for(spec.directory, spec.nodes * spec.ranks_per_node, self._log_sizes),
            terminated=self._terminated,
            no_space=code != 0 and not _can_write(spec.folder),
            can_go_on=spec.kind == "ranks",
        )

    def _record(self, verdict: Verdict) -> None:
        code = 0 if verdict.requeue else int(verdict.exit_code)
        self._attempt = self._attempt.ended(verdict.outcome, verdict.reason, code)
        self._attempt.write(self._spec.folder)
        JobOutcome(
            token=self._spec.token,
            outcome=verdict.outcome.value,
            reason=verdict.reason,
            job_id=self._allocation.job_id,
            attempt=self._attempt.number,
            exit_code=code,
            requeued=verdict.requeue,
            time=time.time(),
        ).write(self._spec.folder)

    def _requeue(self, verdict: Verdict) -> int:
        """Put this job back into the queue; the controller may be away for a while."""
        deadline = time.monotonic() + REQUEUE_TRIES_S
        excluded = _excluded_after(self._allocation.job_id, verdict.bad_node) if verdict.bad_node else ""
        while _scontrol("requeue", self._allocation.job_id) is None:
            if self._terminated or time.monotonic() > deadline:
                reason = f"{verdict.reason}; the job could not be put back into the queue: type the command again"
                self._record(Verdict(AttemptOutcome.ENDED, reason, ExitCode.TRY_AGAIN))
                return int(ExitCode.TRY_AGAIN)
            time.sleep(5.0)
        if excluded:
            _exclude(self._allocation.job_id, excluded)
        logger.info(
            "back in the queue, attempt %d of at most %d follows", self._attempt.number + 1, self._spec.max_attempts
        )
        # leaving before SLURM ends this step could be taken for the end of the job
        deadline = time.monotonic() + _END_WITHIN_S
        while not self._terminated and time.monotonic() < deadline:
            time.sleep(0.2)
        return 0

    @contextlib.contextmanager
    def _noting_signals(self) -> Iterator[None]:
        """SIGTERM says that SLURM ends the job: the ranks get it too, and their end is waited for."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGUSR2)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._terminated = self._terminated or number == signal.SIGTERM


def _scontrol(*arguments: str) -> str | None:
    """What it says, None where it fails, with a warning."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("scontrol %s: %s", " ".join(arguments), error)
        return None
    if done.returncode:
        logger.warning("scontrol %s: %s", " ".join(arguments), done.stderr.strip())
    return done.stdout if done.returncode == 0 else None


def _excluded_after(job_id: str, node: str) -> str:
    """The nodes that the job must not get, with one more."""
    before = _EXCLUDED.search(_scontrol("show", "job", job_id) or "")
    return f"{before[1]},{node}" if before and before[1] != "(null)" else node


def _exclude(job_id: str, nodes: str) -> None:
    """Keep the job, which is in the queue again, off these nodes; a controller that refuses is no error."""
    for _ in range(_EXCLUDE_TRIES):
        if _scontrol("update", f"JobId={job_id}", f"ExcNodeList={nodes}") is not None:
            logger.info("the next attempt does not run on %s", nodes)
            return
        # the signal that ends this batch step ends scontrol too
        time.sleep(0.5)


def _can_write(folder: Path) -> bool:
    """Whether the disk of the outputs takes a small file, and the next check of the nodes would find room there."""
    with contextlib.suppress(OSError):
        # what a rank could not finish is gone, and has left some room
        if shutil.disk_usage(folder).free < checks.MIN_FREE_BYTES:
            return False
    return not disk.is_out_of_space(disk.refusal(folder, 2**20))
