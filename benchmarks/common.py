"""What the benchmarks share: cores, conditions, files."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import bhive_mltf


@contextlib.contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """This process, and those that it starts, on some cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def private_mb(pid: int | str = "self") -> float:
    """Private memory of a process in MB: what it has written to, so that pages of mapped files do not count."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Swap:"))) * 1024 / 1e6


def jetclass_files(folder: Path) -> list[str]:
    """The ROOT files of a folder."""
    files = sorted(map(str, folder.glob("*.root")))
    if not files:
        raise SystemExit(f"no ROOT files in {folder}")
    return files


def conditions(files: Sequence[str]) -> None:
    """Print machine, versions, data and date."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        print("CPU:", next(line.split(":")[1].strip() for line in lines if line.startswith("model name")))
    names = ("numpy", "uproot", "awkward", "pyarrow", "torch")
    versions = ", ".join(f"{name} {sys.modules[name].__version__}" for name in names if name in sys.modules)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}")
    print(f"{versions}; bhive_mltf {bhive_mltf.__version__}; {date.today()}")
    total = sum(os.path.getsize(path) for path in files)  # noqa: PTH202 - paths are texts here
    print(f"{len(files)} files, {total / 1e6:.1f} MB")
