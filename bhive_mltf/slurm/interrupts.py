"""Ctrl-C while a job is followed: once leaves the job alone, twice offers to cancel it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Final, Self

TWICE_WITHIN_S: Final = 2.0


class Detached(KeyboardInterrupt):
    """The command leaves a job that goes on; a KeyboardInterrupt, so that everything above it ends too."""


class Interrupts:
    """Context manager: Ctrl-C is counted instead of ending the process; also the clock of `follow`.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: object = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.count += 1

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Sleep, less long when Ctrl-C comes."""
        seen, end = self.count, time.monotonic() + seconds
        while self.count == seen and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def came_twice(self) -> bool:
        """Whether a second Ctrl-C comes within two seconds of the first."""
        if self.count < 2:
            self.wait(TWICE_WITHIN_S)
        return self.count >= 2

    def confirms(self, question: str) -> bool:
        """Ask at the terminal; no without one, and by default."""
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        try:
            return sys.stdin.readline().strip().lower() in ("y", "yes")
        except KeyboardInterrupt:
            return False
        finally:
            if self._before is not None:
                signal.signal(signal.SIGINT, self._note)
