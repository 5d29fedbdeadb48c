"""Checkpoints on their way to disk: copied on the host, serialised and written by one background thread.

A step costs the copy; it waits only while an earlier checkpoint still has not begun to be written.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WAITING = 1  # copies of a training's state that may wait beside the one that is written


class BackgroundWriter:
    """One thread that does what it is given, in order. Its errors are raised by the next call of any method."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bhive-mltf-checkpoints")
        self._jobs: deque[Future[None]] = deque()

    def put(self, job: Callable[[], None]) -> None:
        """Do `job` later; waits while more than `WAITING` others have not begun."""
        self._reap(leave=WAITING)
        self._jobs.append(self._pool.submit(job))

    def check(self) -> None:
        """Raise what went wrong so far; does not wait."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()

    def drain(self) -> None:
        """Wait until all is written."""
        self._reap(leave=0)

    def close(self) -> None:
        """Write what is left and end; for a training that is failing: a further error is only logged."""
        try:
            self.drain()
        except Exception as error:  # noqa: BLE001 - the training's own error is the one to tell
            logger.warning("%s", error)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _reap(self, leave: int) -> None:
        self.check()
        while len(self._jobs) > leave:
            self._jobs.popleft().result()


def on_host(value: Any) -> tuple[Any, Callable[[], None]]:  # noqa: ANN401 - a tree of plain values and tensors
    """A copy of a state that the next step does not change: containers and tensors anew, tensors on the host.

    Tensors that share memory (tied weights) share it in the copy too, so that files have the same content.

    Returns
    -------
    The copy, and what to call before it is read: copies from a GPU are made behind the steps so far, and nobody
    waits for them here.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}
    copy = _copy(value, copies)
    devices = {place[0] for place in copies if place[0].type == "cuda"}
    events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def ready() -> None:
        for event in events:
            event.synchronize()

    return copy, ready


def _copy(value: Any, copies: dict[tuple[Any, ...], Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if place not in copies:
            copies[place] = _tensor(value.detach())
        return copies[place]
    if isinstance(value, Mapping):
        return {key: _copy(item, copies) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item, copies) for item in value)
    return value


def _tensor(value: Tensor) -> Tensor:
    if value.device.type != "cuda":
        return value.clone()
    return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
