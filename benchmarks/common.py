"""What the benchmarks share: cores, conditions, files."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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


_SPIN = """
import os, sys, time
os.sched_setaffinity(0, [int(sys.argv[1])])
turns, stop = 0, time.perf_counter() + 0.4
while time.perf_counter() < stop:
    turns += 1
print(turns)
"""


def machine_two_over_one(cores: Sequence[int]) -> float:
    """What two cores do over what one does, for a loop that needs nothing but them; 2 on an idle machine."""
    counts = []
    for some in (cores[:1], cores[:2]):
        command = [sys.executable, "-c", _SPIN]
        running = [subprocess.Popen([*command, str(core)], stdout=subprocess.PIPE, text=True) for core in some]
        counts.append(sum(int(process.communicate()[0]) for process in running))
    return counts[1] / counts[0]


# What an empty loop gives on two cores while nobody else uses them.
_FREE = (1.9, 2.2)


@dataclass(frozen=True)
class Scaling:
    """Two cores over one.

    ratio : median of the rounds that count, or of all if none does; None with fewer than two cores.
    machine : the same of an empty loop; where it is far from 2, others used the cores.
    valid : rounds that count: the empty loop gave 1.9 to 2.2 before and after.
    """

    ratio: float | None = None
    machine: float | None = None
    valid: int = 0

    def as_results(self, figure: str) -> dict[str, float | int | None]:
        """Entries for the JSON object of a benchmark: the figure, that of an empty loop, rounds that count."""
        return {figure: self.ratio, f"{figure}_machine": self.machine, f"{figure}_valid_rounds": self.valid}


def two_cores_over_one(measure: Callable[[int], float], cores: Sequence[int], rounds: int) -> Scaling:
    """Speed on two cores over that on one, in turn, beside an empty loop.

    measure : speed with so many cores; the process is already bound to them.
    rounds : that must count; three times as many are tried.
    """
    if len(cores) < 2:
        return Scaling()
    found: list[tuple[float, float, bool]] = []
    loop = machine_two_over_one(cores)
    while sum(valid for _, _, valid in found) < rounds and len(found) < 3 * rounds:
        speeds = []
        for number in (1, 2):
            with on_cores(cores[:number]):
                speeds.append(measure(number))
        before, loop = loop, machine_two_over_one(cores)
        valid = all(_FREE[0] <= one <= _FREE[1] for one in (before, loop))
        found.append((speeds[1] / speeds[0], (before + loop) / 2, valid))
        print(f"two cores over one: {found[-1][0]:.2f}, an empty loop {before:.2f} and {loop:.2f}", flush=True)
    valid = [one for one in found if one[2]]
    ratio, machine = (statistics.median(column) for column in list(zip(*(valid or found), strict=True))[:2])
    return Scaling(ratio, machine, len(valid))


def private_mb(pid: int | str = "self") -> float:
    """Private memory of a process in MB: pages that only it has, without those of files and of shared memory."""
    total, private = 0, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "Private_Dirty":
            private = int(rest.split()[0])
        elif name == "Anonymous":
            # The pages of a mapped file that were just written, and are not on the disk yet, are dirty too.
            total += min(private, int(rest.split()[0]))
        elif name == "Swap":
            total += int(rest.split()[0])
    return total * 1024 / 1e6


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
