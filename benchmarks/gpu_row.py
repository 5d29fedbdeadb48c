"""What the rows of gpu_check.py have in common: their table, batches, steps, times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from bhive_mltf.interface import Batch
from bhive_mltf.models.base import Tagger

PART = "ParticleTransformer_JetClass"
CPU = torch.device("cpu")
Found = dict[str, Any]
Function = Callable[[torch.device], Found]
ROWS: dict[str, Row] = {}
NO_GPU: Found = {"not run": "no GPU"}


class FailedError(Exception):
    """What was found is not what a row asks for."""


@dataclass(frozen=True)
class Row:
    """What is done on a device, what is expected of it, and the seconds that it has."""

    expectation: str
    function: Function
    limit: float


def row(expectation: str, limit: float = 60.0) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        ROWS[function.__name__] = Row(expectation, function, limit)
        return function

    return add


def require(holds: bool, found: str) -> None:
    if not holds:
        raise FailedError(found)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], object], device: torch.device, repeat: int) -> float:
    function()
    synchronise(device)
    started = time.perf_counter()
    for _ in range(repeat):
        function()
    synchronise(device)
    return (time.perf_counter() - started) / repeat


def jets_of(model: Tagger, n_jets: int, mean: int = 50) -> Batch:
    """Random jets of 1 to 128 candidates, on the host."""
    from tests.helpers.model_factory import jets

    generator = torch.Generator().manual_seed(1)
    spread = torch.randn(n_jets, generator=generator) * 0.35 * mean + mean
    return model.counted(jets(model, spread.round().clamp(1, 128).int().tolist()))


def placed(batch: Batch, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
    return batch.map(lambda values: values.to(device, dtype if values.is_floating_point() else values.dtype))


def step(model: Tagger, batch: Batch, autocast: torch.dtype | None = None) -> torch.Tensor:
    with torch.autocast(batch.target.device.type, autocast, enabled=autocast is not None):
        output = model(batch)
    logits = output.logits if model.regression else output
    loss = F.cross_entropy(logits.float() if autocast else logits, batch.target)
    loss.backward()
    return logits.detach()


@contextmanager
def no_syncs(device: torch.device) -> Iterator[None]:
    """An error where the host waits for the GPU."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def run_ahead(device: torch.device) -> None:
    """Keep the GPU busy for some 10 ms, so that the host is ahead of it."""
    if device.type == "cuda":
        torch.cuda._sleep(20_000_000)
