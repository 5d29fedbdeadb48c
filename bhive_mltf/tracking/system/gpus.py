"""Counters of the GPUs of this job, by NVML, under MLflow's names (`gpu_<i>_utilization_percentage`, ...).

The job's GPUs are those of `CUDA_VISIBLE_DEVICES`: indices, UUIDs or MIG slices; `<i>` counts them in that order. A
counter that a GPU does not have is left out, the others are read. Of a MIG slice only the memory is read: load, power
and temperature are known for the whole GPU alone, which other jobs use too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pynvml

VARIABLE = "CUDA_VISIBLE_DEVICES"
_ALL_LINKS = 0xFFFFFFFF  # NVML's scope for the sum over the NVLinks of a GPU
_NVLINK = {
    "nvlink_transmit": pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
    "nvlink_receive": pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
}


class Gpus:
    """The GPUs of this job; empty without a driver."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._gpus: list[_Gpu] = []
        try:
            pynvml.nvmlInit()
            self._gpus = [_Gpu(handle, is_slice) for handle, is_slice in visible(environment.get(VARIABLE))]
        except pynvml.NVMLError:
            return

    def __len__(self) -> int:
        return len(self._gpus)

    def read(self) -> dict[str, float]:
        """All counters now."""
        return {f"gpu_{i}_{name}": value for i, gpu in enumerate(self._gpus) for name, value in gpu.read().items()}


def visible(given: str | None) -> list[tuple[Any, bool]]:
    """NVML handles of the GPUs that CUDA shows to this process, and whether each is a MIG slice.

    given : value of `CUDA_VISIBLE_DEVICES`, None for all GPUs. As in CUDA, an entry that names no GPU hides those after
    it. Indices are those of the driver, which are CUDA's with `CUDA_DEVICE_ORDER=PCI_BUS_ID` and where all GPUs of a
    node are alike.
    """
    every = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    if given is None:
        return [(handle, False) for handle in every]
    found: list[tuple[Any, bool]] = []
    for name in given.split(","):
        one = _find(name.strip(), every)
        if one is None:
            break
        found.append(one)
    return found


def _find(name: str, every: list[Any]) -> tuple[Any, bool] | None:
    if name.isdigit():
        return (every[int(name)], False) if int(name) < len(every) else None
    if name.startswith("GPU-"):
        like = [handle for handle in every if pynvml.nvmlDeviceGetUUID(handle).startswith(name)]
        return (like[0], False) if len(like) == 1 else None
    if name.startswith("MIG-"):
        return next(((mig, True) for gpu in every for mig in _slices(gpu) if name in _slice_names(gpu, mig)), None)
    return None


def _slices(gpu: Any) -> Iterator[Any]:  # noqa: ANN401 - an NVML handle
    try:
        slots = pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)
    except pynvml.NVMLError:
        return
    for slot in range(slots):
        try:
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, slot)
        except pynvml.NVMLError:  # an empty slot
            continue


def _slice_names(gpu: Any, mig: Any) -> tuple[str, str]:  # noqa: ANN401 - NVML handles
    """The UUID of a MIG slice, and its name for drivers before 470."""
    ids = pynvml.nvmlDeviceGetGpuInstanceId(mig), pynvml.nvmlDeviceGetComputeInstanceId(mig)
    return pynvml.nvmlDeviceGetUUID(mig), f"MIG-{pynvml.nvmlDeviceGetUUID(gpu)}/{ids[0]}/{ids[1]}"


class _Gpu:
    """One GPU or MIG slice."""

    def __init__(self, handle: Any, is_slice: bool) -> None:  # noqa: ANN401 - an NVML handle
        self._handle = handle
        whole = self._load, self._power, self._energy, self._temperature, self._clocks, self._pcie, self._nvlink
        self._counters: tuple[Callable[[], dict[str, float]], ...] = (self._memory, *(() if is_slice else whole))
        self._first_energy: float | None = None
        self._links: tuple[float, dict[str, float]] | None = None  # time in s, KiB since the driver was loaded

    def read(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for counter in self._counters:
            try:
                found |= counter()
            except pynvml.NVMLError:
                continue
        return found

    def _memory(self) -> dict[str, float]:
        memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        return {
            "memory_usage_percentage": round(memory.used / memory.total * 100, 1),
            "memory_usage_megabytes": memory.used / 1e6,
        }

    def _load(self) -> dict[str, float]:
        return {"utilization_percentage": float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)}

    def _power(self) -> dict[str, float]:
        milliwatts = pynvml.nvmlDeviceGetPowerUsage(self._handle)
        found = {"power_usage_watts": milliwatts / 1000}
        with suppress(pynvml.NVMLError):
            found["power_usage_percentage"] = milliwatts / pynvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) * 100
        return found

    def _energy(self) -> dict[str, float]:
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        self._first_energy = millijoules if self._first_energy is None else self._first_energy
        return {"energy_watt_hours": (millijoules - self._first_energy) / 3.6e6}

    def _temperature(self) -> dict[str, float]:
        celsius = pynvml.nvmlDeviceGetTemperature(self._handle, pynvml.NVML_TEMPERATURE_GPU)
        return {"temperature_celsius": float(celsius)}

    def _clocks(self) -> dict[str, float]:
        kinds = {"sm": pynvml.NVML_CLOCK_SM, "memory": pynvml.NVML_CLOCK_MEM}
        return {
            f"{name}_clock_megahertz": float(pynvml.nvmlDeviceGetClockInfo(self._handle, kind))
            for name, kind in kinds.items()
        }

    def _pcie(self) -> dict[str, float]:
        """Over the last 20 ms, as NVML measures it."""
        kinds = {"transmit": pynvml.NVML_PCIE_UTIL_TX_BYTES, "receive": pynvml.NVML_PCIE_UTIL_RX_BYTES}
        return {
            f"pcie_{name}_megabytes_per_second": pynvml.nvmlDeviceGetPcieThroughput(self._handle, kind) * 1.024e-3
            for name, kind in kinds.items()
        }

    def _nvlink(self) -> dict[str, float]:
        """Since the last sample; NVML counts KiB since the driver was loaded."""
        wanted = [(field, _ALL_LINKS) for field in _NVLINK.values()]
        values = pynvml.nvmlDeviceGetFieldValues(self._handle, wanted)
        now = time.monotonic()
        totals = {
            name: float(value.value.ullVal)
            for name, value in zip(_NVLINK, values, strict=True)
            if value.nvmlReturn == pynvml.NVML_SUCCESS
        }
        before, self._links = self._links, (now, totals)
        if before is None or now <= before[0]:
            return {}
        seconds = now - before[0]
        return {
            f"{name}_megabytes_per_second": (total - before[1][name]) * 1.024e-3 / seconds
            for name, total in totals.items()
            if total >= before[1].get(name, float("inf"))
        }
