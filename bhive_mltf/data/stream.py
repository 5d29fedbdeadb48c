"""Packets one after another, read in this process or by torch's DataLoader workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from bhive_mltf.data.collate import Packet
from bhive_mltf.data.workers import BatchReader, EpochTasks, Failure, WorkerStart
from bhive_mltf.errors import TrainingError

# fork starts a worker in milliseconds and shares the imported torch, spawn takes 1.5 s and 150 MB each;
# workers touch neither CUDA nor thread pools, which is what fork breaks.
START_METHOD = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


class PacketStream:
    """The packets of one epoch at a time, in order; workers stay from one epoch to the next.

    Parameters
    ----------
    reader, tasks : how to read, and what.
    n_threads : worker processes; 0 reads in this process.
    pin_memory : packets in pinned memory; without effect where there is no CUDA.
    start_method : of the workers.
    """

    def __init__(
        self, reader: BatchReader, tasks: EpochTasks, n_threads: int, pin_memory: bool, start_method: str
    ) -> None:
        self._reader = reader
        self._tasks = tasks
        self._n_threads = n_threads
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._start_method = start_method
        self._loader: DataLoader[Packet | Failure] | None = None
        self._packets: Iterator[Packet | Failure] = iter(())

    def start(self, epoch: int, start: int) -> None:
        """Go to batch `start` of `epoch`; what was under way is dropped."""
        self._tasks.epoch, self._tasks.start = epoch, start
        with _quiet(), _sigchld_untouched():
            if self._loader is None:
                self._loader = self._data_loader()
            self._packets = iter(self._loader)

    def next(self) -> Packet | None:
        """The next packet, None at the end of the epoch. An error ends the workers.

        Raises
        ------
        BhiveError : the reader's, whether it happened here or in a worker.
        TrainingError : a worker died.
        """
        try:
            packet = next(self._packets, None)
        except BaseException as error:
            # Workers left to the garbage collector take torch 5 s to end.
            self.close()
            if self._n_threads and _tells_of_a_dead_worker(error):
                raise TrainingError(
                    f"A loader worker ended on its own ({error}); if memory ran out, take fewer --n-threads."
                ) from error
            raise
        if isinstance(packet, Failure):
            self.close()
            raise packet.error
        return packet

    def close(self) -> None:
        """End the workers; `start` starts them again."""
        # torch ends its workers when nothing refers to them any more.
        self._packets = iter(())
        self._loader = None

    def _data_loader(self) -> DataLoader[Packet | Failure]:
        workers: dict[str, Any] = {}
        if self._n_threads:
            workers = {
                "worker_init_fn": WorkerStart(os.getpid()),
                "multiprocessing_context": self._start_method,
                "persistent_workers": True,
            }
        return DataLoader(
            self._reader,
            batch_size=None,
            sampler=self._tasks,
            num_workers=self._n_threads,
            collate_fn=_same,
            pin_memory=self._pin_memory,
            # torch draws a seed for its workers: not from the generator that dropout uses.
            generator=torch.Generator(),
            **workers,
        )


def _same(packet: Any) -> Any:  # noqa: ANN401 - torch types it as a list
    return packet


def _tells_of_a_dead_worker(error: BaseException) -> bool:
    """True for what torch raises then; the error of a worker that lives begins with `Caught`."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return isinstance(error, ConnectionError | EOFError) and not str(error).startswith("Caught")


def _quiet() -> warnings.catch_warnings[None]:
    """Silence advice on the number of workers (the user's choice) and on fork beside threads."""
    return warnings.catch_warnings(action="ignore")


@contextmanager
def _sigchld_untouched() -> Iterator[None]:
    """Undo torch's SIGCHLD handler, which raises wherever the training happens to be when a worker dies.

    Without it, asking for the next packet finds the dead worker within 5 s.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)
