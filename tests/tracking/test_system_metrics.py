"""The load of every node in the one run of a training, with stand-ins for NVIDIA's driver: in Python, and a library."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from bhive_mltf.tracking import attach, journal, prepare
from bhive_mltf.tracking.connection import connect
from bhive_mltf.tracking.system.gpus import Gpus
from bhive_mltf.tracking.system.machine import Machine
from tests.helpers.compiling import shared_library
from tests.helpers.waiting import wait_for

MIG = "MIG-11111111-2222-3333-4444-555555555555"


class Driver:
    """Four GPUs: 0 with all counters, 1 without power and energy, 2 cut into two MIG slices, 3 with memory alone."""

    uuids = ("GPU-aaaa0000", "GPU-aabb0000", "GPU-cccc0000", "GPU-dddd0000")

    def __init__(self):
        self.joules = 1_000.0
        self.kib = 0

    def missing(self, handle, *names):
        if handle == 3 or handle in ("slice0", "slice1") or (handle == 1 and "power" in names):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 4

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return {"slice0": MIG, "slice1": "MIG-other"}.get(handle) or self.uuids[handle]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):  # noqa: N802
        if handle != 2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 3

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, slot):  # noqa: N802
        if slot == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return {0: "slice0", 2: "slice1"}[slot]

    def nvmlDeviceGetGpuInstanceId(self, handle):  # noqa: N802
        return {"slice0": 7, "slice1": 8}[handle]

    def nvmlDeviceGetComputeInstanceId(self, handle):  # noqa: N802
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(used={0: 3e9, 1: 6e9, "slice0": 1e9}.get(handle, 9e9), total=12e9)

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        self.missing(handle)
        return SimpleNamespace(gpu=40)

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        self.missing(handle, "power")
        return 250_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):  # noqa: N802
        return 500_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        self.missing(handle, "power")
        return self.joules * 1000

    def nvmlDeviceGetTemperature(self, handle, sensor):  # noqa: N802
        self.missing(handle)
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return 61

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        self.missing(handle)
        return {pynvml.NVML_CLOCK_SM: 1500, pynvml.NVML_CLOCK_MEM: 2600}[kind]

    def nvmlDeviceGetPcieThroughput(self, handle, kind):  # noqa: N802
        self.missing(handle)
        return {pynvml.NVML_PCIE_UTIL_TX_BYTES: 1_000_000, pynvml.NVML_PCIE_UTIL_RX_BYTES: 2_000_000}[kind]

    def nvmlDeviceGetFieldValues(self, handle, wanted):  # noqa: N802
        self.missing(handle)
        supported = {pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX: pynvml.NVML_SUCCESS}
        return [
            SimpleNamespace(
                nvmlReturn=supported.get(field, pynvml.NVML_ERROR_NOT_SUPPORTED), value=SimpleNamespace(ullVal=self.kib)
            )
            for field, _ in wanted
        ]


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()
    for name in dir(Driver):
        if name.startswith("nvml"):
            monkeypatch.setattr(pynvml, name, getattr(driver, name))
    return driver


def used(given):
    """Memory of each GPU that is read, in GB: 3, 6, 9 (or 1 for the first MIG slice)."""
    found = Gpus({} if given is None else {"CUDA_VISIBLE_DEVICES": given}).read()
    return [
        found[f"gpu_{i}_memory_usage_megabytes"] / 1000
        for i in range(len(found))
        if f"gpu_{i}_memory_usage_megabytes" in found
    ]


SHOWN = pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [3, 6, 9, 9]),
        ("", []),
        ("1", [6]),
        ("1,0", [6, 3]),
        ("GPU-aabb0000,GPU-aaaa", [6, 3]),
        ("GPU-aa", []),  # two begin so
        ("0,9,1", [3]),
        ("-1", []),
        (MIG, [1]),
        ("MIG-GPU-cccc0000/7/0", [1]),
        ("MIG-nowhere,0", []),
    ],
)


@SHOWN
def test_only_the_gpus_of_the_job_are_read(driver, given, expected):
    assert used(given) == expected


def test_counters_of_a_gpu(driver):
    gpus = Gpus({"CUDA_VISIBLE_DEVICES": "0"})
    gpus.read()
    driver.joules += 7_200.0
    driver.kib += 10_000_000
    time.sleep(0.01)
    found = gpus.read()
    assert 0 < found.pop("gpu_0_nvlink_transmit_megabytes_per_second") <= 10_000_000 * 1.024e-3 / 0.01
    assert found == {
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_memory_usage_megabytes": 3000.0,
        "gpu_0_utilization_percentage": 40.0,
        "gpu_0_power_usage_watts": 250.0,
        "gpu_0_power_usage_percentage": 50.0,
        "gpu_0_energy_watt_hours": 2.0,
        "gpu_0_temperature_celsius": 61.0,
        "gpu_0_sm_clock_megahertz": 1500.0,
        "gpu_0_memory_clock_megahertz": 2600.0,
        "gpu_0_pcie_transmit_megabytes_per_second": 1024.0,
        "gpu_0_pcie_receive_megabytes_per_second": 2048.0,
    }


def test_missing_counters_do_not_stop_the_others(driver):
    found = Gpus({"CUDA_VISIBLE_DEVICES": "1,3"}).read()
    assert "gpu_0_power_usage_watts" not in found
    assert found["gpu_0_temperature_celsius"] == 61.0
    assert {name for name in found if name.startswith("gpu_1")} == {
        "gpu_1_memory_usage_percentage",
        "gpu_1_memory_usage_megabytes",
    }


def test_without_a_driver_there_are_no_gpus(monkeypatch):
    def absent():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert Gpus({}).read() == {}


BY_LIBRARY = """
import json, sys, time
from bhive_mltf.tracking.system.gpus import Gpus

def read(given):
    gpus = Gpus({} if given is None else {"CUDA_VISIBLE_DEVICES": given})
    first = gpus.read()
    time.sleep(0.002)
    return first, gpus.read()

print(json.dumps([read(given) for given in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module", params=["now", "old"])
def by_library(request, tmp_path_factory):
    """What the real NVML binding reads twice through a library in C, for all values of the variable."""
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml_standin.c")
    library = shared_library(folder, source, *(["-DOLD"] if request.param == "old" else []))
    library.rename(folder / "libnvidia-ml.so.1")
    given = [given for given, _ in SHOWN.args[1]]
    command = [sys.executable, "-c", BY_LIBRARY, json.dumps(given)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return request.param, dict(zip(given, json.loads(done.stdout), strict=True))


def test_the_binding_reads_a_driver_library(by_library):
    driver, found = by_library
    for given, expected in SHOWN.args[1]:
        # a driver without MIG shows no slice
        expected = [] if driver == "old" and (given or "").startswith("MIG") else expected
        memory = [value / 1000 for name, value in found[given][1].items() if name.endswith("memory_usage_megabytes")]
        assert memory == expected, given
    first, second = found["1,0"]
    assert "gpu_0_power_usage_watts" not in second
    assert second["gpu_1_power_usage_watts"] == 250.0
    assert second["gpu_1_power_usage_percentage"] == 50.0
    assert second["gpu_0_temperature_celsius"] == second["gpu_1_temperature_celsius"] == 61.0
    assert (second["gpu_1_sm_clock_megahertz"], second["gpu_1_memory_clock_megahertz"]) == (1500.0, 2600.0)
    assert second["gpu_1_pcie_receive_megabytes_per_second"] == 2048.0
    counted = {"gpu_1_energy_watt_hours", "gpu_1_nvlink_transmit_megabytes_per_second"}
    assert counted & set(second) == (counted if driver == "now" else set())
    assert "gpu_1_nvlink_receive_megabytes_per_second" not in second
    if driver == "now":
        assert second["gpu_1_energy_watt_hours"] - first["gpu_1_energy_watt_hours"] == 2.0
        assert 0 < second["gpu_1_nvlink_transmit_megabytes_per_second"] < 20_000_000 * 1.024e-3 / 0.002


def test_processes_of_the_job_are_told_from_the_host():
    busy = "import time\nt = time.monotonic()\nwhile time.monotonic() - t < 60: pass"
    inside = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"]
    )
    try:
        wait_for(lambda: psutil.Process(inside.pid).children(), 30, "the child")
        child = psutil.Process(inside.pid).children()[0]
        wait_for(lambda: child.cpu_times().user > 0.1, 30, "load of the child")
        machine = Machine(inside.pid)
        first = machine.read()
        begun, before = time.monotonic(), sum(child.cpu_times()[:2])
        wait_for(lambda: sum(child.cpu_times()[:2]) - before > 0.3, 30, "more load")
        second = machine.read()
        share = (sum(child.cpu_times()[:2]) - before) / (time.monotonic() - begun) * 100
        assert first["process_count"] == 2
        assert 0.3 * share < second["process_cpu_utilization_percentage"] < 3 * share
        assert 1 < second["process_memory_megabytes"] < second["system_memory_usage_megabytes"]
    finally:
        for process in [*psutil.Process(inside.pid).children(), inside]:
            process.kill()
        inside.wait()


def test_a_missing_counter_of_the_host_stops_no_other(tmp_path, data_path, client, said, monkeypatch):
    prepare(tmp_path, data_path=data_path, run_name="t")
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    with attach(tmp_path) as run:
        run.start_system_metrics(interval=0.05)
        wait_for(lambda: journal.Journal(tmp_path).next_step("system/") > 2, 30, "three points")
    found = client.get_run(run.record.run_id).data.metrics
    assert "system/cpu_utilization_percentage" in found
    assert not any("network" in name for name in found)
    assert len(said()) == 1
    assert "system metrics go without network" in said()[0]


NODE = """
import sys, time
from bhive_mltf.tracking.system.sampler import sample_node
stop = sample_node(sys.argv[1], "n2", interval=0.1)
sys.stdin.read()
stop()
"""


def test_each_node_has_its_series_in_the_one_run(server, tmp_path, monkeypatch, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    run_id = prepare(tmp_path, data_path=tmp_path, run_name="t").run_id
    for start in range(3):  # the job is put back into the queue twice
        prepare(tmp_path, data_path=tmp_path, run_name="t")
        run = attach(tmp_path)
        run.begin()
        run.start_system_metrics(interval=0.1)
        node = subprocess.Popen([sys.executable, "-c", NODE, tmp_path], stdin=subprocess.PIPE)
        for prefix in ("system/", "system/n2/"):
            wait_for(lambda p=prefix, n=3 * start + 2: journal.Journal(tmp_path).next_step(p) > n, 60, prefix)
        if start == 1:
            node.kill()
        node.communicate()
        run.finish("FINISHED" if start == 2 else "SCHEDULED")
    client = connect(server)
    for name in ("system/cpu_utilization_percentage", "system/n2/cpu_utilization_percentage"):
        steps = [point.step for point in client.get_metric_history(run_id, name)]
        assert steps == list(range(len(steps)))
        assert len(steps) >= 9
    assert client.get_run(run_id).info.status == "FINISHED"
    assert said() == []
