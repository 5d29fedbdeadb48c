"""The MLflow run of a training, fed by rank 0, and by the first rank of other nodes with the load of theirs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn
from typing_extensions import override

from bhive_mltf.interface import ModelInputs
from bhive_mltf.models.resolve import GLOBAL
from bhive_mltf.ranks import srun
from bhive_mltf.tracking import NullRun, Run, attach, environment, provenance
from bhive_mltf.tracking.logged_model import ModelArrays
from bhive_mltf.tracking.system.sampler import sample_node
from bhive_mltf.training.monitoring.observers import EpochResult, Interval, Observer
from bhive_mltf.training.plan import TrainingPlan

NESTED_NAME = "model_performance_metrics"
_EXAMPLE_SLOTS = 3
PARTS = {"loss_cat": "Classification Loss", "loss_reg": "Regression Loss"}  # of multi-task models


class MlflowObserver(Observer):
    """Upstream's four metrics per epoch, loss, learning rate and speed per interval, best and last model at the end."""

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
    def model(self, name: Literal["best", "last"], model: nn.Module, path: Path, epoch: int, loss: float) -> None:
        found, metrics = arrays_of(model), {"Validation Loss": loss}
        self._run.model(model, f"{name}_model", step=epoch, metrics=metrics, files=[path], arrays=found)

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


def arrays_of(model: nn.Module) -> ModelArrays | None:
    """What a tagger reads and gives, with two jets as an example; None for a model of another kind.

    Of each group `<group>_features` [B,N,F], `<group>_mask` [B,N] and, where it has some, `<group>_four_vectors`
    [B,N,4] of the batch; `logits` [B,C], and `regression` [B,R].
    """
    inputs = getattr(model, "inputs", None)
    if not isinstance(inputs, ModelInputs):
        return None
    example: dict[str, np.ndarray[Any, Any]] = {}
    free: dict[str, tuple[int, ...]] = {}
    for group in inputs.groups:
        is_fixed = inputs.padding == "configured" or group.name == GLOBAL
        n = group.length if is_fixed else min(group.length, _EXAMPLE_SLOTS)
        found = {"features": np.ones((2, n, len(group.columns)), np.float32), "mask": np.ones((2, n), bool)}
        if group.four_vectors:
            found["four_vectors"] = np.ones((2, n, 4), np.float32)
        for name, array in found.items():
            example[f"{group.name}_{name}"] = array
            free[f"{group.name}_{name}"] = (-1, n if is_fixed else -1, *array.shape[2:])
    regression = tuple(getattr(model, "regression", ()))
    outputs = {"logits": (-1, len(inputs.classes)), **({"regression": (-1, len(regression))} if regression else {})}
    return ModelArrays(free, outputs, example)


def _root() -> int:
    """The process whose tree holds all ranks of this node: their launcher, where there is one."""
    return os.getppid() if "RANK" in os.environ else os.getpid()
