"""Who does the work of a loader: this process, or worker processes."""

from __future__ import annotations

import multiprocessing
import os
import select
import warnings
from collections import deque
from multiprocessing.connection import Connection
from typing import Protocol

from bhive_mltf.data.loader.workers import BatchReader, Work, work_for
from bhive_mltf.errors import BhiveError, TrainingError

# fork starts a worker in milliseconds and shares the imported torch, spawn takes 1.5 s and 150 MB each;
# workers touch neither CUDA nor thread pools, which is what fork breaks.
START_METHOD = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
_DEPTH = 2


class Pool(Protocol):
    """Takes work, and says what is done."""

    def has_room(self) -> bool:
        """True if `submit` would not make a worker's queue too long."""

    def submit(self, work: Work) -> None:
        """Do it, now or soon."""

    def done(self, wait: bool) -> list[Work]:
        """What was done since the last call; with `wait`, something if anything is under way."""

    def close(self) -> None:
        """End the workers."""


class Inline:
    """Does work in this process at once."""

    def __init__(self, reader: BatchReader) -> None:
        self._reader = reader
        self._done: list[Work] = []

    def has_room(self) -> bool:
        """True if nothing waits to be looked at."""
        return not self._done

    def submit(self, work: Work) -> None:
        """Do it now."""
        self._reader.do(work)
        self._done.append(work)

    def done(self, wait: bool) -> list[Work]:  # noqa: ARG002 - nothing is ever under way
        """What was done since the last call."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Nothing to end."""


class Workers:
    """Worker processes, each with two pieces of work at most: one in hand, one waiting."""

    def __init__(self, reader: BatchReader, number: int, start_method: str) -> None:
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._connections: list[Connection] = []
        self._under_way: list[deque[Work]] = [deque() for _ in range(number)]
        self._poll = select.poll()
        context = multiprocessing.get_context(start_method)
        for i in range(number):
            here, there = context.Pipe()
            self._connections.append(here)
            # A forked worker has copies of our ends; while it holds them, nobody sees that we are gone.
            inherited = list(self._connections) if start_method == "fork" else []
            process = context.Process(  # type: ignore[attr-defined]
                target=_work, args=(there, reader, os.getpid(), f"worker {i}", inherited), daemon=True
            )
            with warnings.catch_warnings(action="ignore"):
                process.start()
            there.close()
            self._processes.append(process)
            self._poll.register(here.fileno(), select.POLLIN)

    def __del__(self) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids."""
        return [process.pid or 0 for process in self._processes]

    def has_room(self) -> bool:
        """True if one of the workers has less than it may have."""
        return min(map(len, self._under_way)) < _DEPTH

    def submit(self, work: Work) -> None:
        """Give work to the worker with the least."""
        worker = min(range(len(self._under_way)), key=lambda i: len(self._under_way[i]))
        try:
            self._connections[worker].send(work)
        except OSError as error:
            raise self._dead(worker) from error
        self._under_way[worker].append(work)

    def done(self, wait: bool) -> list[Work]:
        """What was done since the last call; with `wait`, something if anything is under way.

        Raises
        ------
        BhiveError : the reader's.
        TrainingError : a worker died.
        """
        done: list[Work] = []
        block = wait and any(self._under_way)
        ready = {descriptor for descriptor, _ in self._poll.poll(None if block else 0)}
        for worker, connection in enumerate(self._connections):
            if connection.fileno() in ready:
                try:
                    answer: BhiveError | None = connection.recv()
                except (EOFError, OSError) as error:
                    raise self._dead(worker) from error
                if answer is not None:
                    raise answer
                done.append(self._under_way[worker].popleft())
        return done

    def _dead(self, worker: int) -> TrainingError:
        process = self._processes[worker]
        process.join(1)
        return TrainingError(
            f"A loader worker ended on its own (exit code {process.exitcode}); if memory ran out, take fewer "
            "--n-threads."
        )

    def close(self) -> None:
        """End the workers; what they have in hand is lost."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            if process.is_alive():
                process.terminate()
        for process in self._processes:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()
        self._connections, self._processes = [], []
        self._under_way = []


def _work(connection: Connection, reader: BatchReader, parent: int, name: str, inherited: list[Connection]) -> None:
    for other in inherited:
        other.close()
    work_for(connection, reader, parent, name)
