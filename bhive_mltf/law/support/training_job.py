"""A training as a job: prepared and handed in once by the typed command, then followed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf import tracking
from bhive_mltf.data import manifest
from bhive_mltf.errors import SlurmError
from bhive_mltf.law.support import jobs, training
from bhive_mltf.slurm import dispatch, job
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.record import JobRecord

if TYPE_CHECKING:
    from bhive_mltf.law.tasks.training import TrainingTask
    from bhive_mltf.slurm.profiles import Profile
    from bhive_mltf.training.plan import TrainingPlan

CURVES = "bhive_mltf.law.plot_after_job"


def train_as_job(task: TrainingTask, directory: Path) -> None:
    """Follow the job that trains in `directory`; hand it in when there is none.

    Raises
    ------
    JobFailedError : the job is over and the training is not done; the same command continues it.
    SlurmError : the scheduler does not take the job, or one lives that must not be disturbed.
    """
    profile = jobs.with_secrets(task.profile())
    client = Slurm.of(profile)
    with training.one_command(directory):
        record = jobs.living(directory)
        if record is None and task.complete():
            return  # by a command that was waited for
        if record is not None and task.asks_for_a_change():
            raise SlurmError(
                f"job {record.job_id} still trains in {directory}: end it with 'bhive-mltf slurm cancel "
                f"{record.job_id}' before the training is changed"
            )
        if record is not None:
            task.hold_against_record()
        else:
            record = _hand_in(task, directory, profile, client)
    try:
        jobs.follow_to_end(task, record, client, profile)
    except SlurmError:
        # rank 0 may be gone without a word, or never have been there
        ended = JobRecord.read(directory)
        if ended is not None:
            dispatch.close_run(ended)
        raise


def _hand_in(task: TrainingTask, directory: Path, profile: Profile, client: Slurm) -> JobRecord:
    spec = job.make_spec(
        profile,
        name=f"{task.training_version} {task.model_name} {task.dataset_version}",
        kind="ranks",
        command=[profile.python, "-m", "bhive_mltf.training", str(directory / "plan.json")],
        directory=directory,
        nodes=task.nodes,
        ranks_per_node=task.ranks_per_node,
        threads_per_rank=task.threads_per_rank,
        environment=jobs.shell(),
        afterwards=[profile.python, "-m", CURVES, str(directory / "plan.json")],
    )
    training.wait_for_ranks(directory)
    plan = training.prepare(task, directory, "SCHEDULED", nodes=spec.nodes, ranks_per_node=spec.ranks_per_node)
    plan = plan.model_copy(update={"directory": directory.absolute()})
    plan.write()
    spec = spec.model_copy(update={"staged": _staged(plan)})
    try:
        return dispatch.submit_or_attach(profile, spec, client)
    except SlurmError:
        tracking.attach(directory, tracking=plan.tracking).finish("FAILED")
        raise


def _staged(plan: TrainingPlan) -> tuple[str, ...]:
    """The sets that ranks may read from copies: those that are whole in their folder, the manifest included."""
    training_set = None if plan.root_files else plan.dataset
    sets = [path.absolute() for path in (training_set, plan.val_dataset) if path]
    return tuple(str(path) for path in sets if (path / manifest.FILE_NAME).exists())
