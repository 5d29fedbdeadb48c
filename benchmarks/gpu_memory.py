"""Rows of gpu_check.py: batches and checkpoints on their way between host and GPU, and what is out of memory."""

from __future__ import annotations

import logging
import signal
import tempfile
from collections import deque
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from gpu_row import CPU, NO_GPU, FailedError, Found, no_syncs, placed, require, row, run_ahead, synchronise

from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.buffers import Ring, SharedBuffers
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.interface import Batch
from bhive_mltf.ranks.distributed import World
from bhive_mltf.ranks.files import RankError
from bhive_mltf.ranks.gpu_errors import GpuCause
from bhive_mltf.ranks.process import run_reporting
from bhive_mltf.ranks.signals import TrainingInterruptedError
from bhive_mltf.slurm.batch_step.verdict import AttemptOutcome, Seen, judge
from bhive_mltf.training.checkpointing.async_writer import on_host
from bhive_mltf.training.checkpointing.checkpoint import epoch_path, read_checkpoint
from bhive_mltf.training.engine import make_stepper, train
from bhive_mltf.training.monitoring.observers import Observer
from bhive_mltf.training.optim.optimisers import create_optimizer
from bhive_mltf.training.optim.skip_nonfinite_update import Guard
from bhive_mltf.training.transfer import Transfer

HELD = 6  # batches: more than the loader lends, so that some are copies


def sums_of(batch: Batch) -> torch.Tensor:
    """Of all values of a batch, each by itself, float64 on its device."""
    cpf = batch.groups["cpf"]
    columns = (cpf.features, cpf.four_vectors, cpf.mask, batch.target, batch.weight, batch.jet_id, batch.kinematics)
    return torch.stack([values.double().sum() for values in columns])


def filled_with_nan(take):
    """`Ring.take`, of buffers that are full of NaN: whoever still reads one would see it."""

    def filled(self: Ring) -> int | None:
        number = take(self)
        if number is not None:
            self._buffers.view(number)[:] = 255
        return number

    return filled


@row("batches arrive whole: freed buffers full of NaN, the host ahead, 0 and 4 workers, held and copied batches")
def transfer(device: torch.device) -> Found:
    from tests.helpers.memory_dataset import inputs, make_dataset

    dataset, counted = make_dataset(4000), 0
    options = {"mode": "training", "batch_size": 100, "seed": 3, "weighted": False}
    with mock.patch.object(order, "BLOCK", 16), mock.patch.object(Ring, "take", filled_with_nan(Ring.take)):
        expected = [sums_of(batch) for batch in BatchLoader(dataset, range(4000), inputs(), **options).epoch(0)]
        for n_threads in (0, 4):
            for held in (1, HELD):
                loader = BatchLoader(
                    dataset, range(4000), inputs(), n_threads=n_threads, pin_memory=device.type == "cuda", **options
                )
                kept: deque[Batch] = deque(maxlen=held)
                found = []
                for batch in Transfer(device).over(hold(loader.epoch(0), kept)):
                    run_ahead(device)
                    found.append(sums_of(batch))
                loader.close()
                same = torch.equal(torch.stack(found).cpu(), torch.stack(expected))
                require(same, f"batches differ with {n_threads} workers and {held} batches held")
                counted += len(found)
    return {"batches": counted}


def hold(batches, kept):
    """The same batches, the last ones of which are kept on the host too."""
    for batch in batches:
        kept.append(batch)
        yield batch


@row("memory that CUDA refuses to pin leaves no error behind for the next kernel")
def pinned(device: torch.device) -> Found:
    if device.type != "cuda":
        return NO_GPU
    buffers = SharedBuffers(2, 2**20, shared=False)
    buffers.pin()
    require(buffers.pinned, "the first time was refused")
    buffers.pin()
    require(not buffers.pinned, "the second time was not refused")
    require(float(torch.ones(4, device=device).sum()) == 4.0, "a kernel after it is wrong")
    buffers.pinned = True
    return {}


@row("with the guard a gradient that is not finite spares weights and optimiser")
def guard(device: torch.device) -> Found:
    model = torch.nn.Linear(4, 4).to(device)
    optimizer = create_optimizer("AdamW", model.parameters(), 1e-3)
    keeper = Guard(optimizer, device)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    keeper.step(torch.tensor(float("nan"), device=device))
    require(all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)), "the weights moved")
    return {}


@row("a checkpoint is what the weights were when it was asked for, though the GPU is behind")
def checkpoint(device: torch.device) -> Found:
    model = torch.nn.Linear(512, 512).to(device)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run_ahead(device)
    copy, ready = on_host(model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    ready()
    require(all(torch.equal(copy[name], before[name].cpu()) for name in before), "the copy is of later weights")
    return {}


@row("missing memory ends the job: an error file with its cause, verdict FAILED, the sentence names --batch-size")
def memory(device: torch.device) -> Found:
    def work() -> int:
        if device.type != "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 TiB")
        torch.empty(2**42, device=device)
        return 0

    with tempfile.TemporaryDirectory() as folder:
        logging.disable(logging.ERROR)
        code = run_reporting(Path(folder), work)
        logging.disable(logging.NOTSET)
        reason = RankError.read(Path(folder), 0)
    require(code == 1 and reason is not None, f"exit code {code}, error file {reason}")
    require(reason.cause == GpuCause.OUT_OF_MEMORY, f"the cause is '{reason.cause}'")
    verdict = judge(Seen(code, 1, 20, reasons=(reason,)))
    require(verdict.outcome is AttemptOutcome.FAILED and "--batch-size" in verdict.reason, verdict.reason)
    synchronise(device)
    return {"sentence": verdict.reason}


class Cut(Observer):
    """Asks a training to stop after so many batches."""

    def __init__(self, stop_at: int) -> None:
        self._left = stop_at

    def advance(self, n_jets: int) -> None:  # noqa: ARG002
        self._left -= 1
        if self._left == 0:
            signal.raise_signal(signal.SIGTERM)


@row("whole trainings, 2 workers: cut and continued the same bits as uncut, by precision; no step of the engine waits")
def engine(device: torch.device) -> Found:
    from tests.helpers import standin

    pinning = partial(BatchLoader, pin_memory=device.type == "cuda")
    world, counted = World(device=device), 0
    precisions = ("float32", "bf16", *(["fp16"] if device.type == "cuda" else []))
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(standin, "BatchLoader", pinning):
        for precision in precisions:
            weights = []
            for name, observers in (("whole", [Observer()]), ("cut", [Cut(7), Observer()])):
                options = {"training_precision": precision, "n_threads": 2, "deterministic": True}
                plan = standin.plan(Path(folder) / f"{precision}_{name}", model_kwargs={"dropout": 0.1}, **options)
                for number, observer in enumerate(observers, 1):
                    with nullcontext() if number == len(observers) else stopped():
                        train(plan, world, standin.build, observer)
                state = read_checkpoint(epoch_path(plan.directory, 1))["model_state_dict"]
                weights.append(torch.cat([values.flatten().double() for values in state.values()]))
            require(torch.equal(*weights), f"a cut training in {precision} ends with other weights")
            counted += 1
        for precision, optimizer in (*((one, "AdamW") for one in precisions), ("float32", "Ranger")):
            plan = standin.plan(Path(folder) / "steps", training_precision=precision, optimizer=optimizer)
            stepper = make_stepper(plan, world, standin.build(plan, world))
            batch = placed(standin.batch(25), device)
            for number in range(3):
                with no_syncs(device if number else CPU):
                    stepper.train(batch, number, 1e-3)
    return {"trainings": counted}


@contextmanager
def stopped():
    """What is inside has to be stopped by a signal."""
    try:
        yield
    except TrainingInterruptedError:
        return
    raise FailedError("the training was not stopped")
