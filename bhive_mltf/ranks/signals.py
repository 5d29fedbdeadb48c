"""Signals set a flag; the step boundary looks at it. Nothing happens inside a handler."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
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


@contextmanager
def handlers(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None] | None = None
) -> Iterator[None]:
    """Put the handlers of these signals back in the end; until then it is `handler`, if one is given.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    if handler is not None:
        for number in numbers:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            # one that was not set from Python cannot be put back
            if old is not None:
                signal.signal(number, old)


_early: list[signal.Signals] = []


def catch_early() -> None:
    """Note SIGTERM and SIGUSR2 from now on for the `StopSignals` to come.

    For a process whose batch system may warn it while it still imports: by its default action the signal would end it.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, _: _early.append(signal.Signals(number)))


class StopSignals(ExitStack):
    """Context manager: SIGTERM, SIGINT and SIGUSR2 are noted in `received` instead of ending the process.

    A second SIGINT raises KeyboardInterrupt. Outside the main thread, see `handlers`, nothing is noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: signal.Signals | None = _early[-1] if _early else None

    def __enter__(self) -> Self:
        self.enter_context(handlers(STOP_SIGNALS, self._note))
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
