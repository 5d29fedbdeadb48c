"""Progress on rank 0: bars with rich on a terminal, else one plain line now and then."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from typing_extensions import override

from bhive_mltf.training.monitoring.observers import EpochResult, Interval, Observer
from bhive_mltf.training.plan import TrainingPlan

LINE_INTERVAL = 10.0  # s, between plain lines


class TerminalProgress(Observer):
    """Throughput in jets/s, time left, loss. `stream` decides between bars and lines."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._bars: _Bars | None = _Bars(self._stream) if self._stream.isatty() else None
        self._total_rounds, self._unit, self._first = 0, "epoch", 1
        self._title = ""
        self._done = self._total = self._phase_start_batch = self._jets = 0
        self._phase_start = self._last_line = 0.0
        self._loss = ""

    @override
    def begin(self, plan: TrainingPlan, first_epoch: int, global_step: int, world_size: int) -> None:
        self._unit, self._first = ("iteration", 0) if plan.use_iterations else ("epoch", 1)
        self._total_rounds = plan.last_number + self._first
        ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
        goes_on = f", from epoch {first_epoch + 1}, step {global_step}" if global_step else ""
        self._say(f"training {plan.model_name} for {self._total_rounds} {self._unit}s with {ranks}{goes_on}")

    @override
    def phase(self, name: str, epoch: int, done: int, total: int) -> None:
        self._title = f"{self._round(epoch)} {name}"
        self._done = self._phase_start_batch = done
        self._total, self._jets, self._loss = total, 0, ""
        self._phase_start = self._last_line = time.monotonic()
        if self._bars is not None:
            self._bars.phase(self._title, done, total)

    @override
    def advance(self, n_jets: int) -> None:
        self._done += 1
        self._jets += n_jets
        now = time.monotonic()
        if self._bars is not None:
            self._bars.advance(self._jets / max(now - self._phase_start, 1e-9))
        elif now - self._last_line >= LINE_INTERVAL:
            self._last_line = now
            self._say(self._line(now))

    @override
    def interval(self, interval: Interval) -> None:
        self._loss = f"loss {interval.loss:.4f}"
        if self._bars is not None:
            self._bars.tell(self._loss)

    @override
    def warn(self, text: str) -> None:
        self._say(f"warning: {text}")

    @override
    def epoch(self, result: EpochResult) -> None:
        best = ", best so far" if result.is_best else ""
        rate = self._jets / max(result.val_time, 1e-9)
        self._say(
            f"{self._round(result.epoch)}: loss {result.train.loss:.4f}, accuracy "
            f"{result.train.accuracy:.4f}, validation loss {result.validation.loss:.4f}, accuracy "
            f"{result.validation.accuracy:.4f} ({result.train_time:.1f} s + {result.val_time:.1f} s, "
            f"validation {rate:,.0f} jets/s{best})"
        )

    @override
    def end(self, status: str) -> None:
        if self._bars is not None:
            self._bars.close()
        if status == "KILLED":
            self._say("stopped; the same command goes on from here")

    def _round(self, number: int) -> str:
        return f"{self._unit} {number + self._first}/{self._total_rounds}"

    def _line(self, now: float) -> str:
        seconds = max(now - self._phase_start, 1e-9)
        left = seconds * (self._total - self._done) / max(self._done - self._phase_start_batch, 1)
        parts = [f"batch {self._done}/{self._total}", f"{self._jets / seconds:,.0f} jets/s", f"{left:.0f} s left"]
        return f"{self._title}: {', '.join([*parts, self._loss] if self._loss else parts)}"

    def _say(self, line: str) -> None:
        if self._bars is not None:
            self._bars.say(line)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()


class _Bars:
    """One bar at a time on a terminal; it vanishes when its phase is over."""

    def __init__(self, stream: TextIO) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} jets/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=Console(file=stream),
            transient=True,
        )
        self._task = self._bars.add_task("", visible=False, rate="", loss="")

    def phase(self, title: str, done: int, total: int) -> None:
        self._bars.start()
        self._bars.reset(self._task, description=title, completed=done, total=total, visible=True, rate="", loss="")

    def advance(self, rate: float) -> None:
        self._bars.update(self._task, advance=1, rate=f"{rate:,.0f}")

    def tell(self, loss: str) -> None:
        self._bars.update(self._task, loss=loss)

    def say(self, line: str) -> None:
        self._bars.console.print(line, highlight=False)

    def close(self) -> None:
        self._bars.update(self._task, visible=False)
        self._bars.stop()
