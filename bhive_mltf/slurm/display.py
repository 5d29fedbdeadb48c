"""Output while a job is followed: one live line on a terminal, else a line per change."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

from rich.console import Console
from rich.status import Status
from rich.text import Text

from bhive_mltf.ranks.files import RankProgress
from bhive_mltf.slurm.parsing import JobInfo
from bhive_mltf.slurm.states import JobState

PLAIN_EVERY_S: Final = 60.0
_WAITING: Final = {
    "Resources": "for free nodes",
    "Priority": "behind jobs of higher priority",
    "BeginTime": "until it may start again",
    "Dependency": "for another job",
    "QOSMaxJobsPerUserLimit": "for the user's limit of jobs",
    "ReqNodeNotAvail": "for nodes that are not available",
    "PartitionDown": "for a partition that is down",
    "PartitionTimeLimit": "in vain: it asks for more time than its partition gives, cancel it and give --hours",
    "PartitionNodeLimit": "in vain: it asks for more nodes than its partition gives, cancel it and give --nodes",
}


def describe(info: JobInfo, now: float | None = None) -> str:
    """A job's state in one line."""
    job, state, now = f"job {info.job_id}", info.state, time.time() if now is None else now
    attempt = f", attempt {info.restarts + 1}" if info.restarts else ""
    if info.is_held:
        return f"{job} is held ({info.reason or state.value}): 'scontrol release {info.job_id}' lets it go on"
    if state.is_waiting:
        place = f", position {info.position} in the queue" if info.position else ""
        start = f", expected to start in {duration(info.start - now)}" if info.start and info.start > now else ""
        why = f" {_WAITING.get(info.reason, f'({info.reason})')}" if info.reason else ""
        return f"{job} waits{why}{place}{start}{attempt}"
    if state is JobState.COMPLETING:
        return f"{job} is ending{attempt}"
    if state.is_running:
        since = f" for {duration(now - info.start)}" if info.start and now - info.start >= 60 else ""
        nodes = f" on {info.nodes}" if info.nodes else ""
        word = "runs" if state is JobState.RUNNING else f"is {state.value.lower()}"
        return f"{job} {word}{nodes}{since}{attempt}"
    if state is JobState.UNKNOWN:
        return f"{job}: the scheduler gives no answer"
    return f"{job} ended: {state.value}"


def describe_progress(progress: RankProgress, now: float | None = None) -> str:
    """Epoch, step, rate and time left, in one line."""
    parts = []
    if progress.epoch is not None:
        total = f" of {progress.of_epochs}" if progress.of_epochs else ""
        parts.append(f"epoch {progress.epoch}{total}")
    if progress.step is not None:
        parts.append(f"step {progress.step:,}")
    if progress.jets_per_s:
        parts.append(f"{progress.jets_per_s:,.0f} jets/s")
    if progress.eta_s is not None:
        parts.append(f"{duration(progress.eta_s)} left")
    silent = (time.time() if now is None else now) - progress.time
    if silent > 300 and progress.time:
        parts.append(f"nothing new for {duration(silent)}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 3 h`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


class Lines:
    """A line per change of state, and one of progress per minute."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._last: tuple[object, ...] = ()
        self._last_progress = -PLAIN_EVERY_S

    def state(self, info: JobInfo) -> None:
        """The scheduler's answer, changed or not."""
        key = (info.state, info.restarts, info.nodes, info.is_held)
        if key != self._last:
            self._last = key
            self.say(describe(info))

    def progress(self, progress: RankProgress) -> None:
        """How far the ranks are."""
        sentence = describe_progress(progress)
        if sentence and time.monotonic() - self._last_progress >= PLAIN_EVERY_S:
            self._last_progress = time.monotonic()
            self.say(sentence)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """The end."""


class Live:
    """One line at the bottom of a terminal, two of a narrow one; what changes the job's state stays above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = Status(Text(""), console=console)
        self._status.start()
        self._state = self._progress = ""
        self._last: object = None

    def state(self, info: JobInfo) -> None:
        """See `Lines`."""
        self._state = describe(info)
        if (key := (info.state, info.restarts, info.is_held)) != self._last:
            self._last = key
            self.say(f"{time.strftime('%H:%M:%S')} {self._state}")
        if not info.state.is_running:
            self._progress = ""
        self._show()

    def progress(self, progress: RankProgress) -> None:
        """See `Lines`."""
        self._progress = describe_progress(progress)
        self._show()

    def say(self, text: str) -> None:
        """See `Lines`."""
        self._console.print(Text(text))

    def close(self) -> None:
        """See `Lines`."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _show(self) -> None:
        if self._status is None:
            return
        line = f"{self._state}: {self._progress}" if self._progress else self._state
        if self._progress and len(line) + 2 > self._console.width:
            line = f"{self._state}:\n  {self._progress}"
        self._status.update(Text(line))


Display = Lines | Live


def choose_display() -> Display:
    """The display that fits where errors go."""
    console = Console(stderr=True)
    return Live(console) if console.is_terminal else Lines()
