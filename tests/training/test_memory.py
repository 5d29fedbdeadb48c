"""Memory that a step gives back stays with the process."""

import subprocess
import sys

import pytest
import torch

from bhive_mltf.models.cpu_kernels.memory import VARIABLE, keep_memory

CODE = """
import resource, torch
from bhive_mltf.models.cpu_kernels.memory import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        values = [torch.ones(1 << 20) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
by_default = faults()
kept = keep_memory(torch.device("cpu"))
faults()
print(by_default, kept, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_pages_are_found_again():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    by_default, kept, later = done.stdout.split()
    assert kept == "True"
    assert int(later) < 0.1 * int(by_default)


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    assert not keep_memory(torch.device("cpu"))
    monkeypatch.delenv(VARIABLE)
    assert not keep_memory(torch.device("cuda"))
