"""Batches on their way to a GPU: copied on a stream of their own, one batch ahead of the step that needs them.

Streams come by `DeviceLane`, so that all of it but the GPU itself runs on a CPU too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from bhive_mltf.interface import Batch


class DeviceLane:
    """A stream beside the one that computes, by torch's module for a kind of device.

    That is `torch.cuda`, or `torch.cpu`, where a stream does nothing.
    """

    def __init__(self, kind: Any, device: torch.device) -> None:  # noqa: ANN401 - a module
        self._kind, self._device = kind, device
        self._stream = kind.Stream(device) if device.type == "cuda" else kind.Stream()

    def aside(self) -> AbstractContextManager[Any]:
        """What is asked for inside goes to this stream."""
        context: AbstractContextManager[Any] = self._kind.stream(self._stream)
        return context

    def mark(self) -> Any:  # noqa: ANN401 - an event of the device
        """The place that this stream has reached."""
        return self._stream.record_event()

    def wait(self, mark: Any) -> None:  # noqa: ANN401
        """Let the computing stream wait for that place; the host does not."""
        self._kind.current_stream(self._device).wait_event(mark)

    def hand_over(self, values: Tensor) -> Tensor:
        """The same tensor; the computing stream uses it now, and its memory is not given away before that is done."""
        if values.is_cuda:
            values.record_stream(self._kind.current_stream(self._device))
        return values


def lane_of(device: torch.device) -> DeviceLane | None:
    """A lane to this device; None for a CPU, where nothing has to be copied."""
    return DeviceLane(torch.cuda, device) if device.type == "cuda" else None


class Transfer:
    """Brings batches to a device; does nothing where there is no lane. Batches should lie in pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._lane = device, lane_of(device)

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches on the device; while one is used, the next is copied."""
        if self._lane is None:
            yield from batches
            return
        ahead: tuple[Batch, Batch, Any] | None = None
        for batch in batches:
            copied = self._copy(batch, self._lane)
            if ahead is not None:
                yield self._ready(*ahead, self._lane)
            ahead = copied
        if ahead is not None:
            yield self._ready(*ahead, self._lane)

    def _copy(self, batch: Batch, lane: DeviceLane) -> tuple[Batch, Batch, Any]:
        with lane.aside():
            placed = batch.map(lambda values: values.to(self._device, non_blocking=True))
            return batch, placed, lane.mark()

    @staticmethod
    def _ready(host: Batch, placed: Batch, mark: Any, lane: DeviceLane) -> Batch:  # noqa: ANN401
        # only now may the host's memory be used again: what the loader does then waits for the computing stream
        lane.wait(mark)
        del host
        return placed.map(lane.hand_over)
