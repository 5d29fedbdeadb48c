"""Progress of a training inside a job, for the command that follows it: a small JSON file, written now and then."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from typing_extensions import override

from bhive_mltf.ranks.files import RankProgress
from bhive_mltf.training.monitoring.observers import EpochResult, Observer
from bhive_mltf.training.plan import TrainingPlan

INTERVAL = 2.0  # s, at least, between two writes


class ProgressFile(Observer):
    """Writes epoch (from 1), step, jets/s and the time left in seconds to `path`; a failed write is no error.

    A training by iterations has iterations in the place of epochs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._epochs = self._batches = self._done = self._epoch = self._step = self._jets = 0
        self._is_training = self._by_iterations = False
        self._started = self._written = 0.0
        self._rate = 0.0
        self._first = 0

    @override
    def begin(self, plan: TrainingPlan, first_epoch: int, global_step: int, world_size: int) -> None:
        self._by_iterations = plan.use_iterations
        self._epochs, self._step = plan.last_number + 1, global_step
        self._epoch = global_step if plan.use_iterations else first_epoch
        self._write()

    @override
    def phase(self, name: str, epoch: int, done: int, total: int) -> None:
        self._is_training = name == "training"
        self._epoch, self._jets = epoch, 0
        self._started = time.monotonic()
        if self._is_training:
            self._first = self._done = done
            self._batches = total

    @override
    def advance(self, n_jets: int) -> None:
        self._jets += n_jets
        if self._is_training:
            self._done += 1
            self._step += 1
        now = time.monotonic()
        if now - self._written >= INTERVAL:
            if self._is_training:
                self._rate = self._jets / max(now - self._started, 1e-9)
            self._write()

    @override
    def epoch(self, result: EpochResult) -> None:
        self._epoch = result.epoch
        self._write()

    @override
    def end(self, status: str) -> None:
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        first = 0 if self._by_iterations else 1
        progress = RankProgress(
            epoch=min(self._epoch + first, self._epochs),
            of_epochs=self._epochs - 1 + first,
            step=self._step,
            jets_per_s=self._rate,
            eta_s=self._left(),
            time=time.time(),
        )
        with contextlib.suppress(OSError):
            progress.write(self._path)

    def _left(self) -> float | None:
        """Seconds for the batches that are left to train, at the pace of this epoch; None before the first one."""
        done = self._done - self._first
        if not self._is_training or done <= 0:
            return None
        pace = (time.monotonic() - self._started) / done
        if self._by_iterations:
            return pace * (self._epochs - 1 - self._step)
        return pace * (self._batches - self._done + self._batches * (self._epochs - self._epoch - 1))
