"""The one thread of a process that talks to MLflow: it reads the journal, sends batches, and has patience.

Whoever logs never waits and never sees an error. What cannot be delivered stays in the journal and is tried again
now and then, by this process or by a later one; what MLflow refuses is left out. Each kind of trouble gives one
warning. Of all processes that work on a training one delivers at a time, everybody's records.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.tracking import deliver, journal
from bhive_mltf.tracking.failures import Failure, classify, one_line
from bhive_mltf.tracking.journal import Record
from bhive_mltf.tracking.run_resolver import Runs

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

BATCH = 1000  # points, the most that MLflow takes in one call
INTERVAL = 1.0  # s, how long points are gathered
LOCK_NAME = ".sender"
_LOOK_AGAIN = 2.0  # s between looks at the files of other processes
_MAX_PAUSE = 60.0  # s between tries while nobody answers
_MAX_TRIES = 6  # of one record that the server answers with its own error
_GRACE = 10.0  # s that a flush waits for a server that was already silent


class _File:
    """A file of the journal as the sender sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sent = self._read_to = journal.sent(path)
        self.waiting: deque[tuple[Record, int]] = deque()

    def fill(self) -> None:
        """Read some more records, if all that were read are sent."""
        if self.waiting or self.path.stat().st_size <= self._read_to:
            return
        for record, end in journal.read(self.path, self._read_to):
            self.waiting.append((record, end))
            self._read_to = end
            if len(self.waiting) >= BATCH:
                return

    def head(self, limit: int) -> list[Record]:
        """The records that go out in one call: metrics of one run, or one of another kind."""
        found: list[Record] = []
        total = 0
        for record, _ in self.waiting:
            total += deliver.size(record)
            same = not found or (record.get("kind") == "metrics" and record.get("child") == found[0].get("child"))
            if not same or (found and total > limit):
                break
            found.append(record)
            if record.get("kind") != "metrics":
                break
        return found

    def done(self, count: int) -> None:
        """The first `count` records are done with."""
        for _ in range(count):
            _, self.sent = self.waiting.popleft()
        with contextlib.suppress(OSError):  # a full disk: to deliver twice does no harm
            journal.mark_sent(self.path, self.sent)

    def split(self) -> None:
        """The record at the head, point by point."""
        record, end = self.waiting.popleft()
        parts = [{**record, "values": {key: value}} for key, value in record["values"].items()]
        ends = [self.sent] * (len(parts) - 1) + [end]
        self.waiting.extendleft(reversed(list(zip(parts, ends, strict=True))))


class Sender:
    """Delivers the journal of a training in order from a background thread that ends with the process.

    Parameters
    ----------
    connect : makes a client; `label` names the store in messages.
    """

    def __init__(
        self, runs: Runs, connect: Callable[[], MlflowClient], label: str, client: MlflowClient | None = None
    ) -> None:
        self.runs = runs
        self._connect = connect
        self._client = client
        self._label = label
        self._files: dict[Path, _File] = {}
        self._condition = threading.Condition()
        self._ready_at = 0.0  # monotonic time of the next try
        self._failures = 0
        self._tries = 0  # of the records at the head
        self._limit = BATCH
        self._hurry = self._stopped = self._idle = False
        self._lock: int | None = None
        self._unwritten: Record | None = None
        self._refused: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._loop, name="bhive-mltf-tracking", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """The journal has a new record; returns at once."""
        with self._condition:
            self._wake()

    def _wake(self) -> None:
        if self._idle:
            self._idle = False
            self._ready_at = time.monotonic() + (0.0 if self._hurry else INTERVAL)
            self._condition.notify_all()

    def keep(self, record: Record) -> None:
        """Take a record for which the journal has no room; it is sent after all others, from memory."""
        with self._condition:
            self._unwritten = record
            self._wake()

    def flush(self, timeout: float) -> bool:
        """Wait until all that the journal holds now is delivered, `timeout` seconds at most; whether it was."""
        sizes = {path: path.stat().st_size for path in journal.files(self.runs.directory)}
        start = time.monotonic()
        with self._condition:
            self._hurry = True
            self._ready_at = 0.0
            self._condition.notify_all()
            while not (delivered := self._is_sent(sizes)) and self._thread.is_alive():
                limit = min(timeout, _GRACE) if self._failures else timeout
                left = start + limit - time.monotonic()
                if left <= 0:
                    break
                self._wake()
                self._condition.wait(min(left, 0.1))
            self._hurry = False
        return delivered

    @property
    def unwritten(self) -> Record | None:
        """What `keep` took and is not sent yet."""
        return self._unwritten

    def close(self, timeout: float) -> tuple[Counter[str], Counter[str]]:
        """Flush, then stop; what is left in the journal and what MLflow refused, by kind."""
        self.flush(timeout)
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._thread.join(0.5)  # a request under way ends by itself
        left: Counter[str] = Counter()
        for path in journal.files(self.runs.directory):
            left += deliver.count(record for record, _ in journal.read(path, self._sent(path)))
        return left, self._refused

    def warn_once(self, kind: str, message: str, *arguments: object) -> None:
        """Log a warning, once per kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message, *arguments)

    def _sent(self, path: Path) -> int:
        file = self._files.get(path)
        return max(journal.sent(path), file.sent if file else 0)

    def _is_sent(self, sizes: dict[Path, int]) -> bool:
        if self._unwritten is not None:
            return False
        for path, size in sizes.items():
            done = self._sent(path)
            if done < size and any(deliver.what(record) for record, end in journal.read(path, done) if end <= size):
                return False
        return True

    def _loop(self) -> None:
        try:
            while self._wait():
                try:
                    self._work()
                except Exception as error:  # noqa: BLE001 - tracking never ends a training
                    self._pause()
                    self.warn_once(
                        "journal", "the journal of %s cannot be sent (%s)", self.runs.directory, one_line(error)
                    )
        finally:
            if self._lock is not None:
                os.close(self._lock)

    def _wait(self) -> bool:
        """Until there may be something to do; False when stopped."""
        with self._condition:
            while not self._stopped:
                left = self._ready_at - time.monotonic()
                if left <= 0:
                    return True
                self._condition.wait(left)
            return False

    def _work(self) -> None:
        if not self._is_mine():
            self._send_unwritten()
            with self._condition:
                self._ready_at = time.monotonic() + (0.1 if self._hurry else INTERVAL)
            return
        file = self._next_file()
        if file is None:
            self._send_unwritten()
            with self._condition:
                self._idle = True
                self._ready_at = time.monotonic() + _LOOK_AGAIN
            return
        head = file.head(self._limit)
        try:
            self._send(head)
        except Exception as error:  # noqa: BLE001 - tracking never ends a training
            self._failed(file, head, error)
        else:
            self._delivered(file, head)

    def _send_unwritten(self) -> None:
        if self._unwritten is not None:
            self._send([self._unwritten])
            with self._condition:
                self._unwritten = None
                self._condition.notify_all()

    def _is_mine(self) -> bool:
        """Whether this process is the one that delivers; becomes it when nobody is."""
        folder = journal.folder_of(self.runs.directory)
        if self._lock is not None or not folder.is_dir():
            return True
        handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:  # a file system without locks: to deliver twice does no harm
            pass
        self._lock = handle
        self._files.clear()  # what another process delivered is known again
        return True

    def _next_file(self) -> _File | None:
        for path in journal.files(self.runs.directory):
            file = self._files.get(path) or self._files.setdefault(path, _File(path))
            file.fill()
            # lines that are not delivered, such as the first one
            while file.waiting and not deliver.what(file.waiting[0][0]):
                file.done(1)
            if file.waiting:
                return file
        return None

    def _send(self, head: Sequence[Record]) -> None:
        from bhive_mltf.tracking.connection import quiet

        with quiet():
            if self._client is None:
                self._client = self._connect()
            if head[0]["kind"] == "metrics":
                deliver.points(self._client, self.runs, head)
            else:
                deliver.one(self._client, self.runs, head[0])

    def _delivered(self, file: _File, head: Sequence[Record]) -> None:
        for record in head:
            deliver.discard(self.runs.directory, record)
        file.done(len(head))
        with self._condition:
            if self._failures:
                logger.info("MLflow at %s answers again", self._label)
            self._failures = self._tries = 0
            self._limit = min(BATCH, 2 * self._limit)
            self._condition.notify_all()

    def _failed(self, file: _File, head: Sequence[Record], error: Exception) -> None:
        failure = classify(error)
        if failure is Failure.UNCLEAR:
            self._tries += 1
        if failure is Failure.REJECTED or self._tries >= _MAX_TRIES:
            self._rejected(file, head, error)
            return
        self._pause()
        self.warn_once(
            "down",
            "MLflow at %s cannot take data now (%s); the training goes on, and what is logged is kept beside it and"
            " sent when it answers again; check the server, or pass --tracking False",
            self._label,
            one_line(error),
        )

    def _pause(self) -> None:
        with self._condition:
            self._failures += 1
            pause = 1.0 if self._hurry else min(_MAX_PAUSE, 2.0 ** min(self._failures - 1, 6))
            self._ready_at = time.monotonic() + pause

    def _rejected(self, file: _File, head: Sequence[Record], error: Exception) -> None:
        """Leave out what is refused; of several points, halve the batch until the bad one stands alone."""
        self._tries = 0
        if len(head) > 1:
            self._limit = max(1, sum(map(deliver.size, head)) // 2)
            return
        record = head[0]
        if deliver.size(record) > 1:
            file.split()
            self._limit = 1
            return
        kind = deliver.what(record)
        self.warn_once(
            kind,
            "MLflow at %s refused a %s (%s); it is left out, and so are others like it",
            self._label,
            f"{kind} {next(iter(record['values']))!r}" if record["kind"] == "metrics" else kind,
            one_line(error),
        )
        self._refused[kind] += 1
        self._limit = BATCH
        deliver.discard(self.runs.directory, record)
        file.done(1)
