"""The one thread of a process that talks to MLflow: it reads the journal of a training and sends it in batches.

A process that logs only appends to the journal: it never waits and never sees an error. All files of the journal are
delivered, those of other processes and nodes and of earlier commands too. What cannot be delivered stays in the
journal and is tried again, by this process or a later one; what MLflow refuses is left out. Two processes may deliver
the same journal at once: to deliver a record twice does no harm.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.tracking import connection, deliver, journal
from bhive_mltf.tracking.connection import Failure, classify, one_line
from bhive_mltf.tracking.journal import Record
from bhive_mltf.tracking.run_resolver import Runs

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

BATCH = 1000  # points, the most that MLflow takes in one call
INTERVAL = 2.0  # s between looks at the journal
_MAX_PAUSE = 60.0  # s between tries while MLflow does not answer
_MAX_TRIES = 6  # of a batch that the server answers with an error of its own
_GRACE = 10.0  # s that a flush waits for a server that does not answer
CHECK_TAG = "bhive_mltf.delivery_checked"


class Sender:
    """Delivers the journal of a training from a background thread that ends with the process.

    Raises
    ------
    ImportError : mlflow is not installed.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.in_memory: list[Record] = []  # status and tags for which the disk has no room, until they are sent
        self._uri = runs.record.tracking_uri
        self._client: MlflowClient | None = None
        self._condition = threading.Condition()
        self._flushing = self._stopped = False
        self._is_ended = False  # a status from memory was sent, which is newer than those of the journal
        self._failures = 0  # rounds in a row that MLflow did not answer
        self._tries = 0  # of the batch that is delivered next
        self._sent: dict[Path, int] = {}  # a full disk keeps no `.sent` file
        self._refused: Counter[str] = Counter()
        self._warned: set[str] = set()
        # here and not in the thread: two threads that import at once can see half-made modules
        connection.load()
        connection.limit_http()
        try:
            with connection.quiet_with_warnings():
                self._client = connection.connect(self._uri)
        except Exception as error:  # noqa: BLE001 - tried again by the thread
            self.warn_once("down", "MLflow at %s cannot be opened now (%s)", self._uri, one_line(error))
        self._thread = threading.Thread(target=self._loop, name="bhive-mltf-tracking", daemon=True)
        self._thread.start()

    def flush(self, timeout: float) -> bool:
        """Wait until all that the journal holds now is delivered, `timeout` seconds at most; whether it was."""
        sizes = {path: path.stat().st_size for path in journal.files(self.runs.directory)}
        start = time.monotonic()
        with self._condition:
            self._flushing = True
            self._condition.notify_all()
            while not (delivered := self._is_delivered(sizes)) and self._thread.is_alive():
                limit = min(timeout, _GRACE) if self._failures else timeout
                left = start + limit - time.monotonic()
                if left <= 0:
                    break
                self._condition.wait(left)
            self._flushing = False
        return delivered

    def close(self, timeout: float) -> tuple[Counter[str], Counter[str]]:
        """Flush, then stop; what is left in the journal and what MLflow refused, by kind."""
        self.flush(timeout)
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._thread.join(0.5)  # a request under way ends by itself
        return deliver.undelivered(self.runs.directory, self._position), self._refused

    def warn_once(self, kind: str, message: str, *arguments: object) -> None:
        """Log a warning, once per kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message, *arguments)

    def _position(self, path: Path) -> int:
        """Up to which byte a file is delivered, by this process or another one."""
        return max(journal.sent(path), self._sent.get(path, 0))

    def _is_delivered(self, sizes: dict[Path, int]) -> bool:
        if self.in_memory:
            return False
        for path, size in sizes.items():
            done = self._position(path)
            if done < size and any(deliver.what(record) for record, end in journal.read(path, done) if end <= size):
                return False
        return True

    def _loop(self) -> None:
        while not self._stopped:
            try:
                self._deliver_all()
            except Exception as error:  # noqa: BLE001 - tracking never ends a training
                self._failures += 1
                self.warn_once(
                    "down",
                    "MLflow at %s cannot take data now (%s); the training goes on, and what is logged is kept beside"
                    " it and sent when it answers again; check the server, or pass --tracking False",
                    self._uri,
                    one_line(error),
                )
            else:
                if self._failures:
                    logger.info("MLflow at %s answers again", self._uri)
                self._failures = 0
            self._pause()

    def _pause(self) -> None:
        begun = time.monotonic()
        with self._condition:
            self._condition.notify_all()
            while not self._stopped and (left := begun + self._interval() - time.monotonic()) > 0:
                self._condition.wait(left)

    def _interval(self) -> float:
        """Seconds until the next look at the journal."""
        if self._failures:
            return 1.0 if self._flushing else min(_MAX_PAUSE, 2.0 ** min(self._failures - 1, 6))
        return 0.05 if self._flushing else INTERVAL

    def _deliver_all(self) -> None:
        """Send what the journal holds, file by file in the order in which they were begun; raises to try later."""
        with connection.quiet():
            try:
                for path in journal.files(self.runs.directory):
                    if path.stat().st_size > (position := self._position(path)):
                        for records, end in batches(journal.read(path, position)):
                            if self._stopped:
                                return
                            self._deliver(records)
                            self._done(path, records, end)
            finally:
                # not behind a file for which there is no room either
                while self.in_memory:
                    self._deliver([self.in_memory[0]])
                    self._is_ended |= self.in_memory.pop(0)["kind"] == "status"

    def _done(self, path: Path, records: Sequence[Record], end: int) -> None:
        for record in records:
            deliver.discard(self.runs.directory, record)
        self._tries = 0
        self._sent[path] = end
        with contextlib.suppress(OSError):  # a full disk
            journal.mark_sent(path, end)

    def _deliver(self, records: Sequence[Record]) -> None:
        if not records or self._is_superseded(records[0]):
            return
        if self._client is None:
            self._client = connection.connect(self._uri)
        try:
            run_id = self.runs.resolve(self._client, records[0].get("child", ""))
            deliver.send(deliver.Target(self._client, self.runs.directory, self.runs.record, run_id), records)
        except Exception as error:
            failure = classify(error)
            if failure is Failure.UNCLEAR and self._tries < _MAX_TRIES:
                self._tries += 1
                failure = Failure.DOWN
            if failure is Failure.DOWN:
                raise
            self._leave_out(records, failure, error)

    def _is_superseded(self, record: Record) -> bool:
        """Whether a newer status was sent or stands in the journal: an old one must not come after it."""
        if record["kind"] != "status" or any(record is kept for kept in self.in_memory):
            return False
        if self._is_ended and not record.get("child"):
            return True
        return str(record["status"]) != journal.last_status(self.runs.directory, record.get("child", ""))

    def _leave_out(self, records: Sequence[Record], failure: Failure, error: Exception) -> None:
        """Leave out what is refused; of several points, halve the batch until the bad one stands alone."""
        if sum(map(deliver.size, records)) > 1:
            points = [{**record, "values": dict([pair])} for record in records for pair in record["values"].items()]
            middle = len(points) // 2
            self._deliver(points[:middle])
            self._deliver(points[middle:])
            return
        if failure is Failure.UNCLEAR:
            self._check_store()
        record = records[0]
        kind = deliver.what(record)
        self.warn_once(
            kind,
            "MLflow at %s refused a %s (%s); it is left out, and so are others like it",
            self._uri,
            f"{kind} {next(iter(record['values']))!r}" if record["kind"] == "metrics" else kind,
            one_line(error),
        )
        self._refused[kind] += 1

    def _check_store(self) -> None:
        """Raise when the store takes nothing at all now: then no record is at fault."""
        assert self._client is not None
        self._client.set_tag(self.runs.resolve(self._client), CHECK_TAG, f"{time.time():.3f}")


def batches(records: Iterable[tuple[Record, int]]) -> Iterator[tuple[list[Record], int]]:
    """Records that go out in one call, and where they end: metrics of one run, or one record of another kind.

    A batch may be empty: lines that are not delivered, such as the first one of a file.
    """
    batch: list[Record] = []
    size, end = 0, None
    for record, after in records:
        if deliver.what(record):
            size += deliver.size(record)
            if batch and end is not None and (size > BATCH or not _are_alike(batch[0], record)):
                yield batch, end
                batch, size = [], deliver.size(record)
            batch.append(record)
        end = after
    if end is not None:
        yield batch, end


def _are_alike(one: Record, other: Record) -> bool:
    return one["kind"] == other["kind"] == "metrics" and one.get("child") == other.get("child")
