"""The loader against weaver-core's own, and against a plain copy of the same batches.

    python benchmarks/bench_loader.py --data DIR [--rounds 3] [--batch-size 512] [--copies 4]

DIR is a folder of JetClass files named after their processes; weaver-core is in an environment of its own (`make
weaver`, or $WEAVER_PYTHON). What ParT reads: 17 features, four-vectors, mask, label. All that is compared takes turns
within a round, so that a machine that gets slower does so for all. The last line is one JSON object; ratios are medians
over the rounds, on one core. Our sets hold `--copies` distinct copies of each file, so that what a first epoch does
once (memory that is touched for the first time, files that are opened) is spread over more than some 50 batches:

loader_over_weaver : our jets/s over weaver's, which reads ROOT in each epoch; both with the same number of workers (0
    and 1), the smaller ratio counts. Of weaver's two ways to fetch the faster one is taken.
loader_over_weaver_memory : over weaver's with all jets in its memory, without workers.
loader_over_memcpy : time of a batch of a first epoch, its checksums included, over a copy of that batch (distinct
    sources, one destination that is in use already). loader_over_memcpy_later: of a later epoch.
loader_two_cores_over_one : our jets/s with two cores and two workers over those of one core without workers.
loader_two_ranks_over_one : jets/s of two ranks of a training, a core each and no workers, over those of one rank, with
    the same number of jets per rank.
*_machine : of these two, the same of an empty loop, at the same time; less than 2 where others use the machine.
*_valid_rounds : rounds with an empty loop near 2; the two ratios are medians of these, of all if there is none.
worker_peak_mb : the largest private memory of a loader worker, any layout and any size of shards.
sets : per layout, as it is stored: bytes per jet, bytes over those of ROOT, jets/s, the ratios above, MB of a worker.

The set that the first figures are of is `--set`.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from bench_convert import PART_INPUTS, construct_set, stage_files
from common import Scaling, conditions, jetclass_files, on_cores, private_mb, two_cores_over_one
from peer import Peer
from synthetic import distinct_copies

from bhive_mltf import config as configs
from bhive_mltf.config import Config
from bhive_mltf.data.dataset import Dataset, open_dataset
from bhive_mltf.data.loader import collate
from bhive_mltf.data.loader.benchmark import flat_copy, memcpy_seconds
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.interface import ModelInputs
from bhive_mltf.models import registry

SETS: Mapping[str, Mapping[str, str]] = {
    "arrow float32": {},
    "arrow float16": {"data_precision": "float16"},
    "arrow float16 lz4": {"data_precision": "float16", "compression": "lz4"},
    "arrow float16 zstd": {"data_precision": "float16", "compression": "zstd"},
    "LZ4Dataset": {"dataset": "LZ4Dataset"},
}
WAYS = ("files", "all")
WORKERS = (0, 1)
LEAST_SECONDS = 0.5
EPOCHS_OF_RANKS = 3
N_COPIES = 16
MEMORY_TICK_S = 0.01
CHUNKS = (4096, 100_000)


class Ours:
    """The loader on one training set."""

    def __init__(self, directory: Path, config: Config, batch_size: int) -> None:
        self.directory, self.config, self.batch_size = directory, config, batch_size
        model = registry.create("ParticleTransformer_JetClass", config, num_layers=1, num_cls_layers=1)
        self.inputs: ModelInputs = model.inputs
        self._loaders: dict[int, BatchLoader] = {}
        self._epoch = 0

    def open(self) -> Dataset:
        return open_dataset(self.directory, self.config)

    def loader(self, workers: int, rank: int = 0, world_size: int = 1) -> BatchLoader:
        """With `batch_size` jets for each rank."""
        dataset = self.open()
        options = {"mode": "training", "seed": 1, "weighted": False, "n_threads": workers}
        options |= {"batch_size": world_size * self.batch_size, "rank": rank, "world_size": world_size}
        return BatchLoader(dataset, range(len(dataset)), self.inputs, **options)

    def rate(self, workers: int) -> float:
        """Jets/s of later epochs; the workers stay."""
        if workers not in self._loaders:
            self._loaders[workers] = self.loader(workers)
            count(self._loaders[workers], 0)
        jets, start = 0, time.perf_counter()
        while time.perf_counter() - start < LEAST_SECONDS:
            self._epoch += 1
            jets += count(self._loaders[workers], self._epoch)
        return jets / (time.perf_counter() - start)

    def first_rate(self) -> float:
        """Jets/s of a first epoch, in this process: all that is read is checked."""
        loader = self.loader(0)
        start = time.perf_counter()
        return count(loader, 0) / (time.perf_counter() - start)

    def copies(self) -> list[Any]:
        """Some batches as plain bytes."""
        batches = self.loader(0).epoch(0)
        return [flat_copy(batch) for batch, _ in zip(batches, range(N_COPIES), strict=False)]

    def close(self) -> None:
        for loader in self._loaders.values():
            loader.close()
        self._loaders = {}

    def worker_peak_mb(self, workers: int = 2, epochs: int = 3) -> float:
        """The largest private memory that a worker had; mapped files and what workers share do not count."""
        loader = self.loader(workers)
        peak, last = 0.0, 0.0
        for epoch in range(epochs):
            for _ in loader.epoch(epoch):
                if time.perf_counter() - last > MEMORY_TICK_S:
                    found = psutil.Process().children()
                    peak = max(peak, *(private_mb(child.pid) for child in found))
                    last = time.perf_counter()
        loader.close()
        return peak


def count(loader: BatchLoader, epoch: int) -> int:
    """Jets of an epoch, each batch taken and let go."""
    return sum(len(batch.target) for batch in loader.epoch(epoch))


def build(files: Sequence[str], place: Path, chunk_size: int, arguments: argparse.Namespace) -> dict[str, Ours]:
    """A training set per layout."""
    found = {}
    for name in arguments.sets:
        config = configs.load(str(PART_INPUTS)).model_copy(update=dict(SETS[name]))
        folder = place / f"{name} {chunk_size} {len(files)}".replace(" ", "_")
        stage_files(config, files, folder)
        construct_set(config, files, folder, chunk_size=chunk_size)
        found[name] = Ours(folder / "set", config, arguments.batch_size)
    return found


def one_core(ours: Mapping[str, Ours], data: Path, rounds: int, batch_size: int, core: int) -> dict[str, list[float]]:
    """All rates, round by round; those of weaver under `weaver`."""
    found: dict[str, list[float]] = defaultdict(list)
    arguments = [str(data), str(batch_size)]
    with on_cores([core]), Peer("weaver_loader.py", arguments) as weaver:
        print(", ".join(f"{name} {number}" for name, number in weaver.about.items()))
        ask = functools.partial(peer_rate, weaver)
        ways = {way: ask(workers=0, how=way) for way in WAYS}
        way = max(ways, key=ways.__getitem__)
        print("weaver's ways to fetch, jets/s:", ", ".join(f"{name} {rate:.0f}" for name, rate in ways.items()))
        copies = {name: one.copies() for name, one in ours.items()}
        for number in range(rounds + 1):
            rates = {f"weaver {workers}": ask(workers=workers, how=way) for workers in WORKERS}
            rates["weaver memory"] = ask(workers=0, how="memory", batches=50)
            for name, one in ours.items():
                rates |= {f"{name} {workers}": one.rate(workers) for workers in WORKERS}
                rates[f"{name} first"] = one.first_rate()
                rates[f"{name} memcpy"] = batch_size / memcpy_seconds(copies[name])
            # what only warms up does not count
            if number:
                for name, rate in rates.items():
                    found[name].append(rate)
        for one in ours.values():
            one.close()
    return found


def peer_rate(weaver: Peer, *, workers: int, how: str, batches: int = 0) -> float:
    answer = weaver.ask(workers=workers, how=how, batches=batches)
    return float(answer["jets"]) / float(answer["seconds"])


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def two_cores(one: Ours, cores: Sequence[int], rounds: int) -> Scaling:
    """Without workers on one core, and with two workers on two, in turn."""

    def rate(number: int) -> float:
        return one.rate(0 if number == 1 else 2)

    with on_cores(cores[:2]):
        # what only warms up does not count
        rate(1), rate(2)
    found = two_cores_over_one(rate, cores[:2], rounds)
    one.close()
    return found


class Ranks:
    """Processes that load their shares of the same batches, one on each of some cores, when they are told to."""

    def __init__(self, one: Ours, cores: Sequence[int]) -> None:
        context = multiprocessing.get_context("fork")
        self._connections = []
        for rank, core in enumerate(cores):
            here, there = context.Pipe()
            context.Process(target=serve_rank, args=(there, one, core, rank, len(cores)), daemon=True).start()
            self._connections.append(here)

    def rate(self) -> float:
        """Jets/s of all, from the first that begins to the last that ends."""
        start = time.perf_counter()
        for connection in self._connections:
            connection.send(EPOCHS_OF_RANKS)
        return sum(connection.recv() for connection in self._connections) / (time.perf_counter() - start)

    def close(self) -> None:
        for connection in self._connections:
            connection.send(0)


def serve_rank(connection: Connection, one: Ours, core: int, rank: int, world_size: int) -> None:
    """Load as many epochs as told, and answer with the jets; 0 is the end."""
    os.sched_setaffinity(0, [core])
    loader, epoch = one.loader(0, rank, world_size), 0
    count(loader, epoch)
    while number := connection.recv():
        jets = 0
        for _ in range(number):
            epoch += 1
            jets += count(loader, epoch)
        connection.send(jets)


def two_ranks(one: Ours, cores: Sequence[int], rounds: int) -> Scaling:
    """One rank on a core of its own, and two, in turn; each has the same number of jets in a batch."""
    ranks = {number: Ranks(one, cores[:number]) for number in (1, 2)}
    for some in ranks.values():
        some.rate()
    found = two_cores_over_one(lambda number: ranks[number].rate(), cores[:2], rounds)
    for some in ranks.values():
        some.close()
    return found


def summary(name: str, rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The ratios of one set."""
    return {
        "jets_per_s": statistics.median(rates[f"{name} 0"]),
        "jets_per_s_one_worker": statistics.median(rates[f"{name} 1"]),
        "over_weaver": min(ratio(rates[f"{name} {n}"], rates[f"weaver {n}"]) for n in WORKERS),
        "over_weaver_memory": ratio(rates[f"{name} 0"], rates["weaver memory"]),
        "over_memcpy": ratio(rates[f"{name} memcpy"], rates[f"{name} first"]),
        "over_memcpy_later": ratio(rates[f"{name} memcpy"], rates[f"{name} 0"]),
    }


def show(results: Mapping[str, Mapping[str, float]], rates: Mapping[str, Sequence[float]]) -> None:
    for name in ("weaver 0", "weaver 1", "weaver memory"):
        print(f"{name}: {statistics.median(rates[name]):.0f} jets/s")
    columns = list(next(iter(results.values())))
    print(f"\n{'':<20}" + "".join(f"{column.replace('jets_per_s', 'jets/s'):>20}" for column in columns))
    for name, row in results.items():
        print(f"{name:<20}" + "".join(f"{row[column]:>20.2f}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of JetClass files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--copies", type=int, default=4, help="of each file, in our sets")
    parser.add_argument("--set", choices=SETS, default="arrow float32")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="which to measure")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for what is written; default: temporary")
    arguments = parser.parse_args()
    logging.getLogger("bhive_mltf").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    files = jetclass_files(arguments.data)
    conditions(files)
    print("copies of candidates:", "in Python" if collate.PAD_JETS is None else "compiled")
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        many = distinct_copies(files, arguments.copies, Path(folder) / "copies")
        built = {size: build(many, Path(folder), size, arguments) for size in CHUNKS}
        ours = built[CHUNKS[-1]]
        rates = one_core(ours, arguments.data, arguments.rounds, arguments.batch_size, cores[0])
        sets = {name: summary(name, rates) for name in arguments.sets}
        root = sum(map(os.path.getsize, many))
        for name, row in sets.items():
            size = sum(path.stat().st_size for path in ours[name].directory.iterdir())
            row["bytes_per_jet"] = size / len(ours[name].open())
            row["bytes_over_root"] = size / root
            for chunk_size in CHUNKS:
                row[f"worker_mb_{chunk_size}"] = built[chunk_size][name].worker_peak_mb()
        show(sets, rates)
        print("\ntwo workers on two cores, over none on one:")
        scaling = two_cores(ours[arguments.set], cores, arguments.rounds)
        print("two ranks over one:")
        of_ranks = two_ranks(ours[arguments.set], cores, arguments.rounds) if len(cores) > 1 else Scaling()
    chosen = sets[arguments.set]
    result = {f"loader_{key}": chosen[key] for key in ("over_weaver", "over_weaver_memory", "over_memcpy")}
    result["loader_over_memcpy_later"] = chosen["over_memcpy_later"]
    result |= scaling.as_results("loader_two_cores_over_one") | of_ranks.as_results("loader_two_ranks_over_one")
    result["worker_peak_mb"] = max(row[f"worker_mb_{size}"] for row in sets.values() for size in CHUNKS)
    result |= {"set": arguments.set, "sets": sets}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
