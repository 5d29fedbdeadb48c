"""`bhive-mltf slurm jobs | logs | cancel`: the jobs of the outputs below a folder."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.errors import ParameterError, QueryFailedError, SlurmError

if TYPE_CHECKING:
    from bhive_mltf.slurm.client import Slurm
    from bhive_mltf.slurm.record import JobRecord

LOOK_S = 0.5


def add_to(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the actions to a parser."""
    jobs = actions.add_parser("jobs", help="jobs of the outputs below $DATA_PATH, and their states")
    jobs.set_defaults(run=show)
    logs = actions.add_parser("logs", help="print the log of a job")
    logs.add_argument("job", metavar="JOB", help="job id, or output directory")
    logs.add_argument("-f", "--follow", action="store_true", help="go on printing until the job is over")
    logs.add_argument("--rank", type=int, help="the log of this rank instead of the job's")
    logs.set_defaults(run=print_log)
    cancel = actions.add_parser("cancel", help="cancel a job; its MLflow run ends as KILLED")
    cancel.add_argument("job", metavar="JOB", help="job id, or output directory")
    cancel.set_defaults(run=cancel_job)
    for parser in (jobs, logs, cancel):
        parser.add_argument("--folder", type=Path, help="where the tasks' outputs are (default: $DATA_PATH)")


def show(options: argparse.Namespace) -> None:
    """Print one block per job, newest last. ParameterError without a folder."""
    from bhive_mltf.slurm import record

    folder = _folder(options)
    records = sorted(record.find_all(folder), key=lambda found: found.created)
    if not records:
        print(f"no job was submitted for outputs below {folder}")
    for found in records:
        print("\n".join(_block(found, folder)))


def _block(found: JobRecord, folder: Path) -> Iterator[str]:
    from bhive_mltf.ranks.files import RankProgress
    from bhive_mltf.slurm import display

    found, remark = _now(found)
    tries = f", {found.restarts + 1} attempts" if found.restarts else ""
    age = display.duration((found.ended or time.time()) - (found.submitted or found.created))
    took = f"took {age}" if found.ended else f"submitted {age} ago"
    yield f"{found.job_id or '?':>8}  {found.state.value:<13} {found.name}"
    yield f"          {Path(found.profile).stem}, {took}{tries}{remark}"
    progress = RankProgress.read(found.folder)
    if progress is not None and found.state.is_running:
        yield f"          {display.describe_progress(progress)}"
    directory = found.directory
    yield f"          {directory.relative_to(folder) if directory.is_relative_to(folder) else directory}"


def _now(found: JobRecord) -> tuple[JobRecord, str]:
    """The record as it is now; without an answer as it was last seen, with a remark."""
    from bhive_mltf.slurm import dispatch

    if found.is_over or found.job_id is None:
        return found, ""
    try:
        found, info = dispatch.refresh(found, _client(found.slurm_conf))
    except QueryFailedError:
        return found, ", as last seen: the scheduler gives no answer"
    if info.state.is_final and not info.state.may_requeue:
        found = dispatch.end(found, info)
    return found, f", {info.reason}" if info.state.is_waiting and info.reason else ""


@functools.cache
def _client(slurm_conf: str) -> Slurm:
    """One client per cluster, so that one question serves all jobs."""
    from bhive_mltf.slurm.client import Slurm

    return Slurm(slurm_conf, fresh_s=5.0)


def print_log(options: argparse.Namespace) -> None:
    """Print a job's log, and what is added to it. SlurmError when there is none."""
    from bhive_mltf.ranks.files import log_path

    found = _find(options)
    path = found.log if options.rank is None else log_path(found.directory, options.rank)
    position = 0
    while True:
        over = found.is_over or not options.follow
        position = _copy(path, position)
        if over:
            break
        found = _now(found)[0]
        time.sleep(LOOK_S)
    if not path.exists():
        raise SlurmError(f"job {found.job_id} has no log {path}: its state is {found.state.value}")


def _copy(path: Path, position: int) -> int:
    """Print what a file has beyond `position`; the new end."""
    if not path.exists():
        return position
    with path.open("rb") as log:
        log.seek(position)
        content = log.read()
    print(content.decode("utf-8", "replace"), end="", flush=True)
    return position + len(content)


def cancel_job(options: argparse.Namespace) -> None:
    """Cancel a job. SlurmError when it is not known, or the scheduler refuses."""
    from bhive_mltf.slurm import dispatch

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    found = _find(options)
    if found.is_over:
        print(f"job {found.job_id} is over already: {found.state.value}")
        return
    found = dispatch.cancel(found, _client(found.slurm_conf))
    print(f"job {found.job_id}: {found.state.value}{'' if found.is_over else ', asked to end'}")


def _find(options: argparse.Namespace) -> JobRecord:
    from bhive_mltf.slurm import record

    given = Path(options.job)
    if (given / "slurm").is_dir() and (found := record.JobRecord.read(given)) is not None:
        return found
    folder = _folder(options)
    fits = [found for found in record.find_all(folder) if found.job_id == options.job]
    if not fits:
        known = ", ".join(found.job_id or "?" for found in record.find_all(folder)) or "none"
        raise SlurmError(f"no output below {folder} belongs to job {options.job}; the jobs there are: {known}")
    return max(fits, key=lambda found: found.created)


def _folder(options: argparse.Namespace) -> Path:
    if not options.folder and not os.environ.get("DATA_PATH"):
        raise ParameterError("no folder: give --folder, or run 'source setup.sh', which sets DATA_PATH")
    return (options.folder or Path(os.environ["DATA_PATH"])).absolute()
