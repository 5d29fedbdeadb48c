"""A training in this process: one rank, from plan to best model."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch._functorch import config as functorch

from bhive_mltf import compat
from bhive_mltf.attacks.attack import pick_attack
from bhive_mltf.errors import TrainingError
from bhive_mltf.files import disk
from bhive_mltf.files.lock import STALE_AFTER_S, DirectoryLock
from bhive_mltf.gc_freeze import frozen_gc
from bhive_mltf.models.base import Tagger
from bhive_mltf.ranks import gpu_errors, srun
from bhive_mltf.ranks.batchnorm import synchronise_batch_norms
from bhive_mltf.ranks.distributed import World, set_threads
from bhive_mltf.ranks.files import PROGRESS_NAME
from bhive_mltf.ranks.signals import StopSignals, TrainingInterruptedError
from bhive_mltf.training import build as making
from bhive_mltf.training.build import Builder, Ingredients
from bhive_mltf.training.choices import check_compile_mode, check_loss
from bhive_mltf.training.losses import create_loss
from bhive_mltf.training.monitoring.observers import Observer, Observers
from bhive_mltf.training.optim.optimisers import create_optimizer
from bhive_mltf.training.plan import TrainingPlan
from bhive_mltf.training.precision import Precision, float32_products
from bhive_mltf.training.reproducibility import deterministic
from bhive_mltf.training.step import Stepper
from bhive_mltf.training.trainer import Trainer

if TYPE_CHECKING:
    from bhive_mltf.interface import ModelInputs

logger = logging.getLogger(__name__)

# s; ranks of a command that was just killed need a moment to end, and what ran on a lost node is silent for a minute
LOCK_WAIT = STALE_AFTER_S + 30.0
# of a function: groups by their widths, with no, one or many rows, in attack, step and evaluation
COMPILED_VARIANTS = 64


def train(plan: TrainingPlan, world: World, build: Builder = making.build, observer: Observer | None = None) -> None:
    """Train this rank's share of the plan, from the latest checkpoint on.

    Parameters
    ----------
    build : makes model and loaders; tests give their own.
    observer : watches instead of progress display and tracking; rank 0's only.

    Raises
    ------
    TrainingInterruptedError : a signal asked to stop; the position is saved.
    DiskError : the disk is full.
    NonFiniteLossError, CheckpointError, LockedError, and what the data and models raise.
    """
    threads = torch.get_num_threads()
    watching = (observer or _default_observer()) if world.is_first else _node_observer(world)
    status = "FAILED"
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        if world.is_first:
            stack.enter_context(DirectoryLock(plan.directory, wait_s=LOCK_WAIT))
        world.barrier()
        try:
            stack.enter_context(disk.writing(plan.directory, reads=True))
            stack.enter_context(deterministic(plan.deterministic))
            stack.enter_context(float32_products(tf32=Precision.of(plan, world.device).tf32))
            set_threads(plan.threads_per_rank, world)
            parts = build(plan, world)
            stepper = make_stepper(plan, world, parts)
            trainer = Trainer(plan, world, parts, stepper, observer=watching, signals=signals)
            with frozen_gc():
                trainer.run()
            status = "FINISHED"
        except TrainingInterruptedError as error:
            status = "SCHEDULED" if srun.goes_on(signals.received) else "KILLED"
            if world.is_first:
                # before tracking delivers what is left: little time may remain
                srun.leave_stopped_note(error.step, signals.received)
            raise
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except RuntimeError as error:
            # torch's own error, or that of a library which allocates by itself
            if gpu_errors.cause_of(error) is not gpu_errors.GpuCause.OUT_OF_MEMORY:
                raise
            peak = torch.cuda.max_memory_allocated(world.device) / 1e9 if world.device.type == "cuda" else None
            raise TrainingError(gpu_errors.out_of_memory(plan.batch_size, world.size, peak)) from error
        finally:
            torch.set_num_threads(threads)
            watching.end(status)


def make_stepper(plan: TrainingPlan, world: World, parts: Ingredients) -> Stepper:
    """The model on its device, with loss, optimiser and attack."""
    dtype = Precision.of(plan, world.device).weights
    model: nn.Module = synchronise_batch_norms(parts.model, world.norm_group)
    model = model.to(world.device, dtype)
    if plan.use_torch_compile:
        compile_model(model, plan.torch_compile_mode, keeps_graphs=not plan.attack_options.is_nominal)
    check_loss(plan.loss_function, plan.model_name, getattr(parts.model, "regression", ()))
    weights = None if parts.class_weights is None else parts.class_weights.to(world.device, dtype)
    optimizer = create_optimizer(
        plan.optimizer,
        model.parameters(),
        plan.learning_rate,
        betas=plan.betas,
        eps=plan.eps,
        weight_decay=plan.weight_decay,
    )
    stepper = Stepper(plan, world, model, create_loss(plan.loss_function, weights), optimizer)
    if not plan.attack_options.is_nominal:
        inputs = cast("ModelInputs", parts.model.inputs)
        stepper.attack = pick_attack(plan.attack_options, model, inputs, parts.attack_factors)
    return stepper


def compile_model(model: nn.Module, mode: str, *, keeps_graphs: bool = False) -> None:
    """Compile in place, so that the keys of the state dict stay; ParameterError for a mode that does not fit.

    keeps_graphs : several backwards go through one forward, as in attacks.
    """
    check_compile_mode(mode, type(model).__name__, getattr(model, "padding", ""))
    compat.set_compiled_variants(COMPILED_VARIANTS)
    if keeps_graphs:
        # a backward must not write its results over what the forward left for the next one
        functorch.donated_buffer = False
    if isinstance(model, Tagger):
        model.compile_rows(mode)
    else:
        # dynamic: batches have as many slots as their largest jet
        model.compile(mode=mode, dynamic=True)


def _node_observer(world: World) -> Observer:
    """Of a rank above 0: the first one of a node watches its load."""
    from bhive_mltf.training.monitoring.mlflow_observer import NodeObserver

    return NodeObserver() if world.local_rank == 0 else Observer()


def _default_observer() -> Observer:
    from bhive_mltf.training.monitoring.mlflow_observer import MlflowObserver
    from bhive_mltf.training.monitoring.progress import TerminalProgress
    from bhive_mltf.training.monitoring.progress_file import ProgressFile

    folder = srun.job_folder()
    file = [] if folder is None else [ProgressFile(folder / PROGRESS_NAME)]
    return Observers([TerminalProgress(), *file, MlflowObserver()])
