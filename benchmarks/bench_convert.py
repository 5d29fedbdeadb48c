"""Conversion against its floor: uproot's bare reading of the same branches.

    python benchmarks/bench_convert.py --data DIR [--repeats 7] [--copies 6]

DIR is a folder of JetClass files named after their processes. The last line is one JSON object:

convert_over_uproot : jets/s of the conversion (ROOT files to a finished training set: staging and construction) over
    jets/s of uproot reading the same branches, the faster of library="ak" and "np"; one process on one core, files in
    the page cache; median of interleaved repeats. convert_over_uproot_cpu: the same of the processor's time, which
    leaves out waiting for the disk and for other processes.
bytes_over_root : bytes of the training set, derived columns included, over those of the ROOT files.
convert_two_cores_over_one : time on one core over time on two, start of the processes included, on `--copies` distinct
    copies of each file; not there with fewer than two cores. *_machine: the same of an empty loop, at the same time;
    less than 2 where others use the machine. *_valid_rounds: rounds with an empty loop near 2; the ratios are medians
    of these, of all if there is none.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uproot
import uproot.source.file
from common import Scaling, conditions, jetclass_files, on_cores, two_cores_over_one
from synthetic import distinct_copies

from bhive_mltf import config as configs
from bhive_mltf.config import Config
from bhive_mltf.data.build.construct import construct
from bhive_mltf.data.build.stage import stage_many
from bhive_mltf.data.manifest import Manifest
from bhive_mltf.data.ntuples.jobs import DEFAULT_MB, ReadOptions, StageJob

SEED = 1
PART_INPUTS = Path(__file__).with_name("part_inputs.yml")
KINDS = ("wall", "cpu")
LABELS = {
    "ak": "uproot, awkward",
    "np": "uproot, numpy",
    "convert": "conversion",
    "stage": "  staging",
    "construct": "  construction",
}


def read(config: Config, files: Sequence[str], library: str) -> None:
    """uproot alone: all branches of the config, one file after the other."""
    for path in files:
        with uproot.open(path, array_cache=None, handler=uproot.source.file.MemmapSource) as file:
            file[config.treename].arrays(list(config.branches), library=library)


def staged_files(files: Sequence[str], place: Path) -> list[Path]:
    return [place / "staged" / f"{i}.jets" for i in range(len(files))]


def stage_files(
    config: Config, files: Sequence[str], place: Path, *, workers: int = 1, memory_mb: int = DEFAULT_MB
) -> None:
    """The first half of a conversion, as ConvertNtuples does it."""
    options = ReadOptions(memory_mb=memory_mb)
    targets = staged_files(files, place)
    stage_many([StageJob(config, (f,), t, SEED, False, options) for f, t in zip(files, targets, strict=True)], workers)


def construct_set(
    config: Config,
    files: Sequence[str],
    place: Path,
    *,
    workers: int = 1,
    memory_mb: int = DEFAULT_MB,
    chunk_size: int = 100_000,
) -> Manifest:
    """The second half, as DatasetConstructorTask does it."""
    return construct(
        config,
        staged_files(files, place),
        place / "set",
        chunk_size=chunk_size,
        seed=SEED,
        filelist=files,
        memory_mb=memory_mb,
        threads=workers,
    )


@dataclass(frozen=True)
class Seconds:
    """On the clock, and of the processor: the second hardly depends on what else the machine does."""

    wall: float
    cpu: float


def timed(action: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


@contextlib.contextmanager
def emptied(place: Path) -> Iterator[Path]:
    """A folder for one conversion; emptied before and after, outside of what is timed."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    yield place
    shutil.rmtree(place)


def one_core(config: Config, files: Sequence[str], scratch: Path, repeats: int, core: int) -> dict[str, float]:
    """Bare reading and conversion in turn, after one round that does not count."""
    times: dict[str, list[Seconds]] = {"ak": [], "np": [], "stage": [], "construct": []}
    with on_cores([core]):
        for round_number in range(repeats + 1):
            found = {library: timed(functools.partial(read, config, files, library)) for library in ("ak", "np")}
            with emptied(scratch / "one") as place:
                found["stage"] = timed(functools.partial(stage_files, config, files, place))
                found["construct"] = timed(functools.partial(construct_set, config, files, place))
                manifest = Manifest.read(place / "set")
                size = sum(path.stat().st_size for path in (place / "set").iterdir())
            if round_number:
                for name, seconds in found.items():
                    times[name].append(seconds)
    jets = manifest.accounting.read
    columns = {f"{name}, {kind}": [getattr(t, kind) for t in found] for name, found in times.items() for kind in KINDS}
    for kind in KINDS:
        both = zip(columns[f"stage, {kind}"], columns[f"construct, {kind}"], strict=True)
        columns[f"convert, {kind}"] = [a + b for a, b in both]
    print(f"\n{'one core, median s':<34}{'wall':>8}{'jets/s':>9}{'CPU':>9}{'jets/s':>9}")
    for name, label in LABELS.items():
        wall, cpu = (statistics.median(columns[f"{name}, {kind}"]) for kind in KINDS)
        print(f"{label:<34}{wall:>8.3f}{jets / wall:>9.0f}{cpu:>9.3f}{jets / cpu:>9.0f}")
    root = sum(os.path.getsize(path) for path in files)  # noqa: PTH202 - paths are texts here
    result = {"bytes_over_root": size / root}
    for kind, key in zip(KINDS, ("convert_over_uproot", "convert_over_uproot_cpu"), strict=True):
        floor = min((columns[f"{name}, {kind}"] for name in ("ak", "np")), key=statistics.median)
        ratios = [bare / own for bare, own in zip(floor, columns[f"convert, {kind}"], strict=True)]
        print(f"ratios of the repeats, {kind}: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
        result[key] = statistics.median(ratios)
    return result


def two_cores(
    config: Config, files: Sequence[str], scratch: Path, *, repeats: int, cores: Sequence[int], copies: int
) -> Scaling:
    """One core and two in turn, on more jets, since starting a process takes about a second."""
    many = distinct_copies(files, copies, scratch / "copies")
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}

    def jets_per_s(workers: int) -> float:
        with emptied(scratch / "two") as place:
            staging = timed(functools.partial(stage_files, config, many, place, workers=workers)).wall
            construction = timed(functools.partial(construct_set, config, many, place, workers=workers)).wall
            times[workers].append((staging, construction))
            return Manifest.read(place / "set").accounting.read / (staging + construction)

    found = two_cores_over_one(jets_per_s, cores, repeats)
    print(f"\n{'cores':<10}{'staging, median s':>20}{'construction':>14}")
    for workers, column in times.items():
        staging, construction = (statistics.median(some) for some in zip(*column, strict=True))
        print(f"{workers:<10}{staging:>20.2f}{construction:>14.2f}")
    shutil.rmtree(scratch / "copies")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of JetClass files")
    parser.add_argument("--config", default=str(PART_INPUTS), help="default: what ParT reads, and no more")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--copies", type=int, default=6, help="of each file, for one core against two")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for what is written; default: temporary")
    arguments = parser.parse_args()
    logging.getLogger("bhive_mltf").setLevel(logging.ERROR)
    config = configs.load(arguments.config)
    files = jetclass_files(arguments.data)
    conditions(files)
    print(f"config {config.name}: {len(config.branches)} branches; {arguments.repeats} repeats that count")
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        scratch = Path(folder)
        result: dict[str, object] = dict(one_core(config, files, scratch, arguments.repeats, cores[0]))
        if len(cores) >= 2:
            options = {"repeats": min(2, arguments.repeats), "cores": cores[:2], "copies": arguments.copies}
            result |= two_cores(config, files, scratch, **options).as_results("convert_two_cores_over_one")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
