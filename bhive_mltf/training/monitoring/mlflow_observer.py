"""The MLflow run of a training, fed by rank 0, and by the first rank of other nodes with the load of theirs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from torch import nn
from typing_extensions import override

from bhive_mltf.ranks import srun
from bhive_mltf.tracking import NullRun, Run, attach, environment, provenance
from bhive_mltf.tracking.system.sampler import sample_node
from bhive_mltf.training.monitoring.observers import EpochResult, Interval, Observer
from bhive_mltf.training.plan import TrainingPlan

NESTED_NAME = "model_performance_metrics"
PARTS = {"loss_cat": "Classification Loss", "loss_reg": "Regression Loss"}  # of multi-task models


class MlflowObserver(Observer):
    """Upstream's four metrics per epoch, loss, learning rate and speed per interval, the best model at the end."""

    def __init__(self) -> None:
        self._run: Run = NullRun()
        self._nested: Run = NullRun()

    @override
    def begin(self, plan: TrainingPlan, first_epoch: int, global_step: int, world_size: int) -> None:
        self._run = attach(plan.directory, tracking=plan.tracking)
        if plan.nested_metrics:
            self._nested = self._run.nested(NESTED_NAME)
        self._run.begin()
        self._run.tags({"world_size": world_size, "generation": plan.generation, **srun.attempt_tags()})
        # where this start of the training runs: of a job, another machine than that of the command
        facts = {**environment.facts(with_torch=True), "system": provenance.system()}
        self._run.json({**facts, "world_size": world_size}, f"starts/step_{global_step}.json")
        self._run.start_system_metrics(root=_root())

    @override
    def interval(self, interval: Interval) -> None:
        values = {
            "train/loss": interval.loss,
            "train/lr": interval.learning_rate,
            "train/jets_per_s": interval.jets_per_s,
            "train/gradient_norm": interval.gradient_norm,
            "train/loader_wait": interval.loader_wait,
        }
        self._run.metrics(values, step=interval.global_step)

    @override
    def warn(self, text: str) -> None:
        self._run.tags({"warning": text})

    @override
    def file(self, path: Path, folder: str | None = None) -> None:
        self._run.artifact(path, folder)

    @override
    def epoch(self, result: EpochResult) -> None:
        values = {
            "Training Loss": result.train.loss,
            "Training Accuracy": result.train.accuracy,
            "Validation Loss": result.validation.loss,
            "Validation Accuracy": result.validation.accuracy,
        }
        for title, figures in (("Training", result.train), ("Validation", result.validation)):
            values |= {f"{title} {PARTS[name]}": value for name, value in figures.parts.items()}
        self._run.metrics(values, step=result.epoch)
        self._nested.metrics(values, step=result.epoch)

    @override
    def best(self, model: nn.Module, path: Path, epoch: int, loss: float) -> None:
        self._run.model(model, step=epoch, metrics={"Validation Loss": loss}, files=[path])

    @override
    def end(self, status: str) -> None:
        self._nested.finish(status)
        self._run.finish(status)


class NodeObserver(Observer):
    """System metrics of a node other than the first; for its first rank."""

    def __init__(self) -> None:
        self._stop: Callable[[], None] = lambda: None

    @override
    def begin(self, plan: TrainingPlan, first_epoch: int, global_step: int, world_size: int) -> None:
        if plan.tracking:
            node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
            self._stop = sample_node(plan.directory, node, root=_root())

    @override
    def end(self, status: str) -> None:
        self._stop()


def _root() -> int:
    """The process whose tree holds all ranks of this node: their launcher, where there is one."""
    return os.getppid() if "RANK" in os.environ else os.getpid()
