"""The one thread of a process that talks to MLflow: a bounded queue, batches, and patience.

Whoever logs never waits and never sees an error. What cannot be delivered is kept and tried again now and then;
what MLflow refuses is left out. Each kind of trouble gives one warning.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from bhive_mltf.tracking.failures import Failure, classify, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from bhive_mltf.tracking.target import Target

logger = logging.getLogger(__name__)

BATCH = 1000  # points, the most that MLflow takes in one call
CAPACITY = 200_000  # entries, about 60 MB
INTERVAL = 1.0  # s, how long points are gathered
_MAX_PAUSE = 60.0  # s between tries while nobody answers
_MAX_TRIES = 6  # of one entry that the server answers with its own error
_GRACE = 10.0  # s that a flush waits for a server that was already silent


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric; `timestamp` in milliseconds since 1970."""

    target: Target
    key: str
    value: float
    timestamp: int
    step: int

    what = "point"


@dataclass(frozen=True, slots=True)
class Operation:
    """Anything else that is sent; `what` names it in messages, `discard` removes what it holds once it is done with."""

    target: Target
    what: str
    send: Callable[[MlflowClient, str], None]
    discard: Callable[[], None] | None = None


class Sender:
    """Delivers points and operations in order from a background thread that ends with the process."""

    def __init__(
        self,
        connect: Callable[[], MlflowClient],
        label: str,
        client: MlflowClient | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self._connect = connect
        self._client = client
        self._label = label
        self._capacity = capacity
        self._entries: deque[Point | Operation] = deque()
        self._condition = threading.Condition()
        self._ready_at = 0.0  # monotonic time of the next try
        self._failures = 0
        self._tries = 0  # of the entries at the head
        self._limit = BATCH
        self._hurry = False
        self._stopped = False
        self._lost: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._loop, name="bhive-mltf-tracking", daemon=True)
        self._thread.start()

    def put(self, *entries: Point | Operation) -> None:
        """Queue entries; returns at once. Those for which there is no room are counted as lost."""
        with self._condition:
            if not self._entries:
                self._ready_at = max(self._ready_at, time.monotonic() + INTERVAL)
            for entry in entries:
                if self._stopped or len(self._entries) >= self._capacity:
                    self._lose(entry)
                else:
                    self._entries.append(entry)
            if len(self._entries) >= BATCH and not self._failures:
                self._ready_at = 0.0
            self._condition.notify_all()

    def flush(self, timeout: float) -> int:
        """Wait until all is delivered, `timeout` seconds at most; the number of entries that still wait."""
        start = time.monotonic()
        with self._condition:
            self._hurry = True
            self._ready_at = 0.0
            self._condition.notify_all()
            while self._entries and self._thread.is_alive():
                limit = min(timeout, _GRACE) if self._failures else timeout
                left = start + limit - time.monotonic()
                if left <= 0:
                    break
                self._condition.wait(min(left, 0.2))
            self._hurry = False
            return len(self._entries)

    def close(self, timeout: float) -> Counter[str]:
        """Flush, then stop; what was not delivered, by kind."""
        self.flush(timeout)
        with self._condition:
            self._stopped = True
            for entry in self._entries:
                self._lose(entry)
            self._entries.clear()
            self._condition.notify_all()
        self._thread.join(0.5)  # a request under way ends by itself
        return Counter(self._lost)

    def warn_once(self, kind: str, message: str, *arguments: object) -> None:
        """Log a warning, once per kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message, *arguments)

    def _lose(self, entry: Point | Operation) -> None:
        self._lost[entry.what] += 1
        self._discard(entry)

    @staticmethod
    def _discard(entry: Point | Operation) -> None:
        if isinstance(entry, Operation) and entry.discard is not None:
            entry.discard()

    def _loop(self) -> None:
        while (entries := self._next()) is not None:
            try:
                self._send(entries)
            except Exception as error:  # noqa: BLE001 - tracking never ends a training
                self._failed(entries, error)
            else:
                self._delivered(entries)

    def _next(self) -> Sequence[Point | Operation] | None:
        """Wait for the next entries that go out in one call; None when stopped."""
        with self._condition:
            while not self._stopped:
                pause = self._ready_at - time.monotonic()
                if self._entries and pause <= 0:
                    head = self._entries[0]
                    if isinstance(head, Operation):
                        return [head]
                    return list(islice(_of_one_run(self._entries, head.target), self._limit))
                self._condition.wait(pause if self._entries else None)
            return None

    def _send(self, entries: Sequence[Point | Operation]) -> None:
        from mlflow.entities import Metric

        from bhive_mltf.tracking.connection import quiet

        with quiet():
            if self._client is None:
                self._client = self._connect()
            run_id = entries[0].target.resolve(self._client)
            if isinstance(entries[0], Operation):
                entries[0].send(self._client, run_id)
                return
            points = [Metric(e.key, e.value, e.timestamp, e.step) for e in entries if isinstance(e, Point)]
            self._client.log_batch(run_id, metrics=points, synchronous=True)

    def _delivered(self, entries: Sequence[Point | Operation]) -> None:
        with self._condition:
            if self._failures:
                logger.info("MLflow at %s answers again", self._label)
            self._failures = self._tries = 0
            self._limit = min(BATCH, 2 * self._limit)
            self._remove(len(entries))

    def _failed(self, entries: Sequence[Point | Operation], error: Exception) -> None:
        failure = classify(error)
        with self._condition:
            if self._stopped:
                return
            if failure is Failure.UNCLEAR:
                self._tries += 1
            if failure is Failure.REJECTED or self._tries >= _MAX_TRIES:
                self._rejected(entries, error)
                return
            self._failures += 1
            pause = 1.0 if self._hurry else min(_MAX_PAUSE, 2.0 ** min(self._failures - 1, 6))
            self._ready_at = time.monotonic() + pause
        self.warn_once(
            "down",
            "MLflow at %s cannot take data now (%s); the training goes on, and what is logged is sent when it answers"
            " again; check the server, or pass --tracking False",
            self._label,
            one_line(error),
        )

    def _rejected(self, entries: Sequence[Point | Operation], error: Exception) -> None:
        """Leave out what is refused; of several points, halve the batch until the bad one stands alone."""
        self._tries = 0
        if len(entries) > 1:
            self._limit = max(1, len(entries) // 2)
            return
        entry = entries[0]
        self.warn_once(
            entry.what,
            "MLflow at %s refused a %s (%s); it is left out, and so are others like it",
            self._label,
            f"{entry.what} {entry.key!r}" if isinstance(entry, Point) else entry.what,
            one_line(error),
        )
        self._lost[entry.what] += 1
        self._limit = BATCH
        self._remove(1)

    def _remove(self, count: int) -> None:
        # after close() the queue is empty already
        for _ in range(min(count, len(self._entries))):
            self._discard(self._entries.popleft())
        self._condition.notify_all()


def _of_one_run(entries: Iterable[Point | Operation], target: Target) -> Iterator[Point | Operation]:
    """The points at the head that go to the same run."""
    for entry in entries:
        if not isinstance(entry, Point) or entry.target is not target:
            return
        yield entry
