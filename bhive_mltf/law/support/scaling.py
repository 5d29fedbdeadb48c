"""Measuring how a training scales: ranks, table, figure, MLflow run."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bhive_mltf import tracking
from bhive_mltf.files.lock import DirectoryLock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bhive_mltf.law.tasks.scaling import ScalingTask
    from bhive_mltf.training.plan import TrainingPlan
    from bhive_mltf.training.scaling.table import Row


def measure(task: ScalingTask, directory: Path) -> None:
    """Measure, and leave table and figure in the directory and in an MLflow run of their own."""
    from bhive_mltf.training.scaling import measure
    from bhive_mltf.training.scaling.table import PARTS, table, write_rows

    with DirectoryLock(directory, wait_s=None):
        plan = _plan(task, directory)
        facts = tracking.environment.facts(with_torch=True)
        conditions = _conditions(plan, facts, task)
        _begin_run(task, directory, conditions, facts)
        with tracking.attach(directory, tracking=plan.tracking) as run:
            rows = []
            for row in measure.measure(plan, task.world_sizes, steps=task.steps, warm_up=task.warm_up_steps):
                task.say(f"{row.kind} scaling, {row.ranks} ranks: {row.jets_per_s:,.0f} jets/s")
                rows.append(row)
                run.metrics({f"{row.kind}/{name}": getattr(row, name) for name in _METRICS}, step=row.ranks)
            rows.sort(key=lambda row: (row.kind == "strong", row.ranks))
            figures = _draw(rows, PARTS, conditions, directory)
            write_rows(rows, conditions, directory)
            task.say("\n".join(["", table(rows), "", *_sentences(conditions)]))
            for name in (*figures, "scaling.csv", "scaling.json"):
                run.artifact(directory / name, "scaling")
            run.finish("FINISHED")


_METRICS = ("jets_per_s", "speedup", "efficiency", "step", "loader", "forward", "backward", "communication", "update")


def _plan(task: ScalingTask, directory: Path) -> TrainingPlan:
    """The training that would run, in this directory; on a CPU one rank has as many threads as one of several."""
    import torch

    from bhive_mltf.law.tasks.training import TrainingTask

    plan = TrainingTask.req(task).plan()
    threads = plan.threads_per_rank or (0 if torch.cuda.is_available() else 1)
    return plan.model_copy(
        update={"directory": directory, "dataset_sidecar": directory / "dataset", "threads_per_rank": threads}
    )


def _conditions(plan: TrainingPlan, facts: dict[str, Any], task: ScalingTask) -> dict[str, Any]:
    """What the figures depend on."""
    machine, torch_state, versions = facts["machine"], facts["torch"], facts["packages"]
    return {
        "model": plan.model_name,
        "model_kwargs": plan.model_kwargs,
        "config": plan.config.name,
        "dataset": task.dataset_version,
        "precision": "mixed" if plan.mixed_precision else plan.training_precision,
        "compiled": plan.use_torch_compile,
        "baseline_ranks": min(task.world_sizes),
        "baseline_batch_size": plan.batch_size,
        "steps": task.steps,
        "warm_up_steps": task.warm_up_steps,
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


def _sentences(conditions: dict[str, Any]) -> list[str]:
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


def _begin_run(task: ScalingTask, directory: Path, conditions: dict[str, Any], facts: dict[str, Any]) -> None:
    """A run for this measurement alone, also when an earlier one was made here."""
    (directory / "run.json").unlink(missing_ok=True)
    tracking.prepare(
        directory,
        data_path=os.environ["DATA_PATH"],
        run_name=f"scaling {task.model_name} {task.dataset_version}",
        params={**conditions, "world_sizes": ",".join(map(str, task.world_sizes))},
        tags={"task": task.task_family, **tracking.environment.tags(facts)},
        tracking=task.tracking,
    )


def _draw(rows: Sequence[Row], parts: Sequence[str], conditions: dict[str, Any], directory: Path) -> tuple[str, str]:
    from dataclasses import asdict

    from bhive_mltf.evaluation.scaling_figure import scaling_figure

    name = scaling_figure([asdict(row) for row in rows], parts, "\n".join(_sentences(conditions)), directory)
    return name, name.replace(".png", ".pdf")
