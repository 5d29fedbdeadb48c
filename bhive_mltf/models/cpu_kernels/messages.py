"""Messages of batch norms to other ranks, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Told how long each message took, waiting for other ranks included, in seconds; for measurements only.
listener: Callable[[float], None] | None = None


@contextmanager
def message() -> Iterator[None]:
    """Around one message."""
    if listener is None:
        yield
        return
    started = time.perf_counter()
    yield
    listener(time.perf_counter() - started)
