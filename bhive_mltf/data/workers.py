"""Reading of batches, in this process or in loader workers.

The process that trains plans the batches and sends each one's jet positions; a worker keeps no state
but the window that it read last. So an epoch, a restart or a rank is nothing that a worker must know.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.utils.data
from numpy.typing import NDArray

from bhive_mltf.data import order
from bhive_mltf.data.collate import Arena, Packet, collate, padded_lengths, read_columns
from bhive_mltf.data.order import Window
from bhive_mltf.data.plan import BatchPlan, Part
from bhive_mltf.data.source import JetSource
from bhive_mltf.data.targets import Unmatched, class_targets, resolve_unmatched
from bhive_mltf.errors import BhiveError
from bhive_mltf.models.inputs import ModelInputs

_WATCH_S = 1.0


@dataclass(frozen=True)
class BatchTask:
    """One rank's slice of a global batch, to be read.

    lengths : N per group, of the whole global batch.
    """

    parts: tuple[Part, ...]
    lengths: Mapping[str, int]
    global_size: int


@dataclass(frozen=True)
class Failure:
    """A user's error on its way from a worker; torch would wrap its sentence in a traceback."""

    error: BhiveError


class EpochTasks(torch.utils.data.Sampler[BatchTask]):
    """The tasks of one rank for the epoch that is set; what torch's DataLoader calls a sampler."""

    def __init__(self, plan: BatchPlan, inputs: ModelInputs, rank: int, world_size: int) -> None:
        self.plan = plan
        self.inputs = inputs
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[BatchTask]:
        index = self.plan.selection.source.index
        for batch in self.plan.batches(self.epoch, self.start):
            yield BatchTask(
                parts=batch.cut(rank_slice(len(batch), self.rank, self.world_size)),
                lengths=padded_lengths(index, batch.positions, self.inputs),
                global_size=len(batch),
            )


def rank_slice(n: int, rank: int, world_size: int) -> slice:
    """The jets of `rank` among the `n` of a global batch: contiguous, sizes differ by one at most."""
    return slice(rank * n // world_size, (rank + 1) * n // world_size)


@dataclass
class BatchReader(torch.utils.data.Dataset[Packet | Failure]):
    """Reads and collates tasks; picklable.

    unmatched : what becomes of jets in no class.
    weight_factors : process factors if the batch weight is the sampling probability, None if it is 1.
    """

    source: JetSource
    jets: range
    inputs: ModelInputs
    unmatched: Unmatched
    weight_factors: NDArray[np.float64] | None
    _cached: tuple[Window, Arena] | None = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}

    def __getitem__(self, task: BatchTask) -> Packet | Failure:
        try:
            return self._read(task)
        except BhiveError as error:
            if torch.utils.data.get_worker_info() is None:
                raise
            return Failure(error)

    def _read(self, task: BatchTask) -> Packet:
        positions = np.concatenate([np.empty(0, np.int64), *(part.positions for part in task.parts)])
        index = self.source.index
        bits = np.asarray(index.truth_bits[positions])
        targets = class_targets(bits, self.source.schema.truths, self.inputs.classes)
        weight = np.ones(len(positions), np.float32)
        if self.weight_factors is not None:
            probability = order.sampling_probability(
                index.weight[positions], index.process[positions], self.weight_factors
            )
            weight = probability.astype(np.float32)
        return collate(
            (
                (self._arena(part.window), order.window_rows(self.jets, part.window, part.positions))
                for part in task.parts
            ),
            self.inputs,
            task.lengths,
            target=resolve_unmatched(targets, self.unmatched),
            weight=weight,
            global_size=task.global_size,
        )

    def _arena(self, window: Window) -> Arena:
        """The jets of a window; only the last one asked for is kept."""
        if self._cached is None or self._cached[0] != window:
            self._cached = None
            columns = read_columns(self.inputs)
            runs = order.window_runs(self.jets, window)
            blocks = [self.source.read(run.start, run.stop, columns) for run in runs]
            self._cached = window, Arena.of(blocks, self.inputs)
        return self._cached[1]


@dataclass(frozen=True)
class WorkerStart:
    """What a loader worker does first; `parent` is the process that started it."""

    parent: int

    def __call__(self, worker: int) -> None:
        """Leave signals to the parent, and end with it."""
        # The batch system signals every process of a job, and a terminal all of its foreground: the
        # parent decides what that means, and it needs batches to come to a step boundary.
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        if sys.platform != "darwin":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=self._watch, name=f"parent of worker {worker}", daemon=True).start()

    def _watch(self) -> None:
        """End this process when the parent is gone or wants it to."""
        while os.getppid() == self.parent:
            if sys.platform == "darwin":
                time.sleep(_WATCH_S)
                continue
            received = signal.sigtimedwait([signal.SIGTERM], _WATCH_S)
            if received is not None and received.si_pid == self.parent:
                break
        os._exit(0)
