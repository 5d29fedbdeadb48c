"""Processor, memory, disk and network of this machine, and beside them those of this job's processes alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

from bhive_mltf.tracking.connection import one_line


class Machine:
    """Counters of the host under MLflow's names, and of a tree of processes.

    root : id of the process whose tree belongs to this job: the launcher of the ranks, or this process.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._network: tuple[float, float] | None = None
        self._cpu: tuple[float, dict[int, float]] | None = None  # time in s, processor seconds by process
        self.missing: dict[str, str] = {}
        self._counters: dict[str, Callable[[], dict[str, float]]] = {
            "processor": self._processor,
            "memory": self._memory,
            "disk": self._disk,
            "network": self._traffic,
            "processes": self._processes,
        }
        psutil.cpu_percent()  # the first value has no meaning: it is that since this call

    def read(self) -> dict[str, float]:
        """All counters now; one that cannot be read is noted in `missing` and left out."""
        found: dict[str, float] = {}
        for name, counter in self._counters.items():
            try:
                found |= counter()
            except Exception as error:  # noqa: BLE001 - one missing counter never stops the others
                self.missing[name] = one_line(error)
        return found

    def _processor(self) -> dict[str, float]:
        return {"cpu_utilization_percentage": psutil.cpu_percent()}

    def _memory(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
        }

    def _disk(self) -> dict[str, float]:
        disk = psutil.disk_usage(os.sep)
        return {
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
        }

    def _traffic(self) -> dict[str, float]:
        """Since the first sample."""
        counted = psutil.net_io_counters()
        total = counted.bytes_recv / 1e6, counted.bytes_sent / 1e6
        self._network = first = self._network or total
        return {
            "network_receive_megabytes": total[0] - first[0],
            "network_transmit_megabytes": total[1] - first[1],
        }

    def _processes(self) -> dict[str, float]:
        """Of this job: processor time since the last sample (100 is one core), memory; shared pages count each time."""
        processes, now = self._tree(), time.monotonic()
        seconds: dict[int, float] = {}
        memory = 0.0
        for process in processes:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    memory += process.memory_info().rss / 1e6
                seconds[process.pid] = times.user + times.system
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        before, self._cpu = self._cpu, (now, seconds)
        found = {"process_memory_megabytes": memory, "process_count": float(len(seconds))}
        if before is not None and now > before[0]:
            used = sum(value - before[1].get(pid, 0.0) for pid, value in seconds.items())
            found["process_cpu_utilization_percentage"] = used / (now - before[0]) * 100
        return found

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._root)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:  # the launcher is gone, or in another container
            own = psutil.Process()
            return [own, *own.children(recursive=True)]
