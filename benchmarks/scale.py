"""Cost per jet and memory of conversion and loading, from 10^4 to 10^6 synthetic JetClass jets.

    python benchmarks/scale.py [--scratch DIR] [--memory 1024] [--figure FILE.png] [--jets N ...]

Each number of jets is converted, and then loaded, by a process of its own. A million takes about 8 GB of disk. The last
line is one JSON object: for each number of jets, microseconds per jet of the conversion (ROOT files to a finished
training set), of a first epoch of the loader (all that is read is checked) and of a later one, and the largest private
memory in MB of the process while it converts and while it loads. `--memory` is the budget of the conversion.

The smallest set has ten files of 1000 jets, the largest a hundred of 10,000, so that what each file costs, however few
jets it holds (it is opened, its branches are looked up, a staged file is made), weighs ten times more in the first.
`convert_work_us` is without it: the time of so many files of ten jets each, measured in the same process, is
subtracted. Small sets are converted up to five times, and the median counts. Loading is timed in whole epochs until
half a second is over; of first ones each has a loader of its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_convert import PART_INPUTS, construct_set, stage_files, timed
from common import jetclass_files, private_mb
from synthetic import write_jets

from bhive_mltf import config as configs
from bhive_mltf.data.manifest import Manifest
from bhive_mltf.data.ntuples.jobs import DEFAULT_MB
from bhive_mltf.testing.jetclass_jets import PROCESSES

SCALES = (10_000, 31_000, 100_000, 310_000, 1_000_000)
MEMORY_TICK_S = 0.02
LEAST_SECONDS = 0.5
LEAST_SECONDS_CONVERTING = 8
MOST_TURNS = 5
JETS_PER_EMPTY_FILE = 10
BATCH_SIZE = 512
COSTS = {
    "convert_us": "conversion",
    "convert_work_us": "conversion, files' own costs subtracted",
    "first_epoch_us": "loading, first epoch",
    "later_epoch_us": "loading, later",
}
PEAKS = {"convert_mb": "conversion", "load_mb": "loading, no workers"}


class PeakMemory:
    """The largest private memory of this process while the block runs, in MB; pages of mapped files not counted."""

    def __enter__(self) -> PeakMemory:
        self.peak_mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(MEMORY_TICK_S):
            self.peak_mb = max(self.peak_mb, private_mb())


def convert(root: Path, place: Path, memory_mb: int) -> dict[str, float]:
    """One conversion in this process, after very small ones: of what is imported, then of what a file costs."""
    config, files = configs.load(str(PART_INPUTS)), jetclass_files(root)
    few = write_jets(JETS_PER_EMPTY_FILE * len(PROCESSES), place / "few")

    def seconds(inputs: Sequence[str], folder: Path) -> float:
        start = time.perf_counter()
        stage_files(config, inputs, folder, memory_mb=memory_mb)
        construct_set(config, inputs, folder, memory_mb=memory_mb)
        return time.perf_counter() - start

    per_file = statistics.median([seconds(few, place / f"few_{turn}") for turn in range(4)][1:]) / len(few)
    times = []
    with PeakMemory() as memory:
        while sum(times) < LEAST_SECONDS_CONVERTING and len(times) < MOST_TURNS:
            shutil.rmtree(place / "set", ignore_errors=True)
            times.append(seconds(files, place))
    whole = statistics.median(times)
    jets = Manifest.read(place / "set").accounting.read
    costs = {"convert_us": whole / jets * 1e6, "convert_work_us": (whole - per_file * len(files)) / jets * 1e6}
    return {"jets": jets, "files": len(files), **costs, "file_ms": per_file * 1e3, "convert_mb": memory.peak_mb}


def load(place: Path) -> dict[str, float]:
    """First and later epochs of a loader without workers, in this process; medians."""
    import torch
    from bench_loader import Ours, count

    torch.set_num_threads(1)
    ours = Ours(place / "set", configs.load(str(PART_INPUTS)), BATCH_SIZE)
    first, later = list[float](), list[float]()
    with PeakMemory() as memory:
        while sum(first) < LEAST_SECONDS:
            loader = ours.loader(0)
            first.append(timed(functools.partial(count, loader, 0)).wall)
        while sum(later) < LEAST_SECONDS:
            later.append(timed(functools.partial(count, loader, 1 + len(later))).wall)
    jets = loader.n_jets(0)
    costs = [statistics.median(times) / jets * 1e6 for times in (first, later)]
    return {"first_epoch_us": costs[0], "later_epoch_us": costs[1], "load_mb": memory.peak_mb}


def measure(n_jets: int, scratch: Path, memory_mb: int) -> dict[str, float]:
    """All figures for one number of jets."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        place = Path(folder)
        write_jets(n_jets, place / "root")
        row: dict[str, float] = {}
        for step in ("convert", "load"):
            command = [sys.executable, __file__, "--step", step, "--scratch", folder, "--memory", str(memory_mb)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row |= json.loads(answer.splitlines()[-1])
            shutil.rmtree(place / "staged", ignore_errors=True)
    return row


def draw(rows: Sequence[Mapping[str, float]], memory_mb: int, path: Path) -> None:
    """Cost and memory against the number of jets."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (cost, peak) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    jets = [row["jets"] for row in rows]
    for axes, names in ((cost, COSTS), (peak, PEAKS)):
        for key, label in names.items():
            axes.plot(jets, [row[key] for row in rows], "o-", label=label)
        axes.set(xscale="log", xlabel="jets")
    peak.axhline(memory_mb, color="grey", ls="--", label="budget of the conversion")
    cost.set(ylabel="microseconds per jet", yscale="log", ylim=(1, None))
    cost.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    cost.minorticks_off()
    peak.set(ylabel="private memory, MB", ylim=(0, 1.5 * memory_mb))
    for axes in (cost, peak):
        axes.legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, default=DEFAULT_MB, help="budget of the conversion in MB")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for what is written; default: temporary")
    parser.add_argument("--jets", type=int, nargs="+", default=SCALES, help="numbers of jets")
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("--step", choices=("convert", "load"), default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.getLogger("bhive_mltf").setLevel(logging.ERROR)
    place = arguments.scratch
    if arguments.step == "convert":
        print(json.dumps(convert(place / "root", place, arguments.memory)))
        return
    if arguments.step == "load":
        print(json.dumps(load(place)))
        return
    rows = []
    for n_jets in arguments.jets:
        rows.append(measure(n_jets, place, arguments.memory))
        print({key: round(number, 1) for key, number in rows[-1].items()}, flush=True)
    if arguments.figure:
        draw(rows, arguments.memory, arguments.figure)
    print(json.dumps({"memory_budget_mb": arguments.memory, "scale": rows}))


if __name__ == "__main__":
    main()
