"""What a measurement of scaling depends on, in words and in an MLflow run of its own."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bhive_mltf import tracking

if TYPE_CHECKING:
    from bhive_mltf.training.plan import TrainingPlan

# Fields of a row of the table that are metrics of the run.
METRICS = (
    *("jets_per_s", "speedup", "efficiency", "step", "loader", "forward", "backward", "communication", "update"),
    *("byte_share", "flop_share"),
)


@dataclass(frozen=True)
class ScalingRequest:
    """What is measured: `steps` after `warm_up_steps` of a training, with each of `world_sizes` ranks.

    task, data_path : for the MLflow run.
    """

    plan: TrainingPlan
    dataset_version: str
    world_sizes: tuple[int, ...]
    steps: int
    warm_up_steps: int
    task: str
    data_path: str


def plan_here(plan: TrainingPlan, directory: Path) -> TrainingPlan:
    """The training that would run, in this directory; on a CPU one rank has as many threads as one of several."""
    import torch

    threads = plan.threads_per_rank or (0 if torch.cuda.is_available() else 1)
    return plan.model_copy(
        update={"directory": directory, "dataset_sidecar": directory / "dataset", "threads_per_rank": threads}
    )


def conditions(request: ScalingRequest, facts: dict[str, Any]) -> dict[str, Any]:
    """What the figures depend on."""
    plan = request.plan
    machine, torch_state, versions = facts["machine"], facts["torch"], facts["packages"]
    return {
        "model": plan.model_name,
        "model_kwargs": plan.model_kwargs,
        "config": plan.config.name,
        "dataset": request.dataset_version,
        "precision": "mixed" if plan.mixed_precision else plan.training_precision,
        "compiled": plan.use_torch_compile,
        "baseline_ranks": min(request.world_sizes),
        "baseline_batch_size": plan.batch_size,
        "steps": request.steps,
        "warm_up_steps": request.warm_up_steps,
        "loader_workers": plan.n_threads,
        "threads_per_rank": plan.threads_per_rank,
        "host": machine["host"],
        "cpu": _processor(),
        "cores": machine["cpus"],
        "gpus": torch_state["devices"],
        "versions": {name: versions.get(name, "") for name in ("bhive_mltf", "torch")},
        "python": machine["python"],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def sentences(conditions: dict[str, Any]) -> list[str]:
    """The conditions in lines of less than 80 columns."""
    c = conditions
    gpus = f"{len(c['gpus'])} x {c['gpus'][0]}" if c["gpus"] else "no GPU"
    compiled = ", compiled" if c["compiled"] else ""
    ranks = f"{c['baseline_ranks']} rank{'s' if c['baseline_ranks'] > 1 else ''}"
    return [
        f"{c['model']}, {c['precision']}{compiled}; config {c['config']}, data {c['dataset']}",
        f"baseline: {ranks}, batch of {c['baseline_batch_size']}; {c['steps']} steps after {c['warm_up_steps']}",
        f"{gpus}; {c['cores']} cores of {c['cpu']}",
        f"{c['threads_per_rank'] or 'automatic'} threads per rank, {c['loader_workers']} loader workers per rank",
        f"torch {c['versions']['torch']}, bhive_mltf {c['versions']['bhive_mltf']}, Python {c['python']}",
    ]


def begin_run(request: ScalingRequest, conditions: dict[str, Any], facts: dict[str, Any]) -> None:
    """A run for this measurement alone, also when an earlier one was made here."""
    directory = request.plan.directory
    (directory / "run.json").unlink(missing_ok=True)
    tracking.prepare(
        directory,
        data_path=request.data_path,
        run_name=f"scaling {request.plan.model_name} {request.dataset_version}",
        params={**conditions, "world_sizes": ",".join(map(str, request.world_sizes))},
        tags={"task": request.task, **tracking.environment.tags(facts)},
        tracking=request.plan.tracking,
    )
