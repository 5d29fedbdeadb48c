"""Signals set a flag; the step boundary looks at it. Nothing happens inside a handler."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

from bhive_mltf.errors import TrainingError

# USR2 is the warning of a batch system; luigi and NCCL may use USR1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
NO_SPACE_EXIT_CODE = 74  # EX_IOERR: the disk is full
INTERRUPTED_EXIT_CODE = 75  # EX_TEMPFAIL: not done, the same command goes on


class TrainingInterruptedError(TrainingError):
    """A training that was asked to stop, and saved where it was, after `step` steps.

    received : the signal that this process got; None where another one was asked.
    """

    def __init__(self, message: str, step: int = -1, received: signal.Signals | None = None) -> None:
        super().__init__(message)
        self.step, self.received = step, received


_early: list[signal.Signals] = []


def catch_early() -> None:
    """Note SIGTERM and SIGUSR2 from now on for the `StopSignals` to come.

    For a process whose batch system may warn it while it still imports: by its default action the signal would end it.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, _: _early.append(signal.Signals(number)))


class StopSignals:
    """Context manager: SIGTERM, SIGINT and SIGUSR2 are noted in `received` instead of ending the process.

    A second SIGINT raises KeyboardInterrupt. Outside the main thread, where Python allows no handlers, nothing is
    changed.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = _early[-1] if _early else None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restore_handlers(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


def restore_handlers(handlers: dict[signal.Signals, object]) -> None:
    """Put back handlers as `signal.signal` returned them; those not set from Python cannot be."""
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)  # type: ignore[arg-type]
