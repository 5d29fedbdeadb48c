"""Loader workers: processes that read batches, end with the process that trains, and leave signals to it."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections import deque
from multiprocessing.connection import Connection

import torch

from bhive_mltf.data.loader.reader import BatchReader, Work
from bhive_mltf.errors import BhiveError, TrainingError

# fork starts a worker in milliseconds and shares the imported torch, spawn takes 1.5 s and 150 MB each;
# workers touch neither CUDA nor thread pools, which is what fork breaks.
START_METHOD = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
_DEPTH = 2
_WATCH_S = 1.0


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
                target=_serve, args=(there, reader, os.getpid(), i, inherited), daemon=True
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
        """Give work to the worker with the least; TrainingError if that one died."""
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
        BhiveError
            The reader's.
        TrainingError
            A worker died.
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
        if process.exitcode == -signal.SIGBUS:
            return TrainingError(
                "a loader worker was killed by SIGBUS, as where a mapped file cannot be read: look for it with "
                "'bhive-mltf dataset verify'"
            )
        return TrainingError(
            f"a loader worker ended on its own (exit code {process.exitcode}): if memory ran out, take fewer "
            "--n-threads"
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


def _serve(connection: Connection, reader: BatchReader, parent: int, number: int, inherited: list[Connection]) -> None:
    """What a worker does: one piece of work after another, until the other end is closed.

    Answers each with None, or with the error of a user; another error ends the process with its traceback.
    """
    for other in inherited:
        other.close()
    _leave_signals_to(parent, number)
    torch.set_num_threads(1)
    while True:
        try:
            work: Work = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        answer: BhiveError | None = None
        try:
            reader.do(work)
        except BhiveError as error:
            answer = error
        connection.send(answer)


def _leave_signals_to(parent: int, number: int) -> None:
    # The batch system signals every process of a job, and a terminal all of its foreground: the
    # parent decides what that means, and it needs batches to come to a step boundary.
    for one in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(one, signal.SIG_IGN)
    if sys.platform != "darwin":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    name = f"parent of worker {number}"
    threading.Thread(target=_end_with, args=(parent,), name=name, daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when the parent is gone or wants it to."""
    while os.getppid() == parent:
        if sys.platform == "darwin":
            time.sleep(_WATCH_S)
            continue
        received = signal.sigtimedwait([signal.SIGTERM], _WATCH_S)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
