"""Where the time of the loader goes: plan, decoding, tables of windows, gathering, hand-over; against a plain copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.dataset import Dataset
from bhive_mltf.data.loader.buffers import buffer_bytes, unpack
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.errors import DataError
from bhive_mltf.interface import Batch, ModelInputs

STAGES: Mapping[str, str] = {
    "plan": "order of the jets, sampling, padding",
    "decode": "blocks decompressed or unpacked",
    "read": "where the candidates of a window lie; in the first epoch, their checksums too",
    "gather": "candidates of the batch, padded",
    "hand-over": "tensors made",
}
_COPIES = 16


@dataclass(frozen=True)
class LoaderProfile:
    """What was measured; times in ms per batch.

    first, later : by stage, in one process; in the first epoch all that is read is checked.
    bytes_per_batch : features, masks, four-vectors and columns per jet.
    memcpy : time of a copy of that many bytes from memory to memory that is in use already.
    rates : jets/s of whole epochs, by number of workers.
    """

    batch_size: int
    n_batches: int
    first: Mapping[str, float]
    later: Mapping[str, float]
    bytes_per_batch: float
    memcpy: float
    rates: Mapping[int, float]

    @property
    def over_memcpy(self) -> float:
        """Time of a batch in later epochs, all stages together, over that of a copy."""
        return sum(self.later.values()) / self.memcpy


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def profile(
    dataset: Dataset,
    inputs: ModelInputs,
    *,
    batch_size: int,
    n_threads: int = 0,
    max_batches: int = 200,
    weighted: bool = False,
    seed: int = 1,
) -> LoaderProfile:
    """Measure the loader of a training.

    Parameters
    ----------
    n_threads : worker processes; epochs are timed without workers and with these.
    max_batches : batches per measurement at most.

    Raises
    ------
    DataError
        There is not one full batch; what the loader raises.
    """

    def loader(workers: int) -> BatchLoader:
        jets = range(len(dataset))
        options = {"mode": "training", "unmatched": "drop", "seed": seed, "weighted": weighted}
        return BatchLoader(dataset, jets, inputs, batch_size=batch_size, n_threads=workers, **options)  # type: ignore[arg-type]

    this = loader(0)
    n_batches = min(max_batches, this.n_batches(0))
    first, batches = _stages(this, inputs, batch_size, 0, n_batches)
    later = min((_stages(this, inputs, batch_size, epoch, n_batches)[0] for epoch in (1, 2, 3)), key=_total)
    rates = {workers: _rate(loader(workers), n_batches, batch_size) for workers in dict.fromkeys((0, n_threads))}
    return LoaderProfile(
        batch_size=batch_size,
        n_batches=n_batches,
        first={stage: 1e3 * seconds / n_batches for stage, seconds in first.items()},
        later={stage: 1e3 * seconds / n_batches for stage, seconds in later.items()},
        bytes_per_batch=statistics.mean(map(len, batches)),
        memcpy=1e3 * memcpy_seconds(batches),
        rates=rates,
    )


def _total(stages: Mapping[str, float]) -> float:
    return sum(stages.values())


def _stages(
    loader: BatchLoader, inputs: ModelInputs, batch_size: int, epoch: int, n_batches: int
) -> tuple[dict[str, float], list[NDArray[np.uint8]]]:
    """Seconds by stage of some batches, and copies of a few of them."""
    clock = _Clock()
    reader = loader.reader(2, buffer_bytes(inputs, batch_size))
    shares = loader.shares(epoch)
    copies: list[NDArray[np.uint8]] = []
    for number in range(n_batches):
        with clock("plan"):
            share = next(shares, None)
        if share is None:
            raise DataError(f"epoch {epoch} ended after {number} of {n_batches} batches")
        first = 0
        for part in share.parts:
            if reader.arenas is not None:
                with clock("decode"):
                    reader.decode(part.window)
            with clock("read"):
                table = reader.table(part.window)
            with clock("gather"):
                reader.fill(number % 2, share.shape, first, part.positions, table)
            first += len(part.positions)
        with clock("hand-over"):
            batch = unpack(reader.buffers.view(number % 2), share.shape, inputs)
        if len(copies) < _COPIES:
            copies.append(flat_copy(batch))
    return clock.seconds, copies


def flat_copy(batch: Batch) -> NDArray[np.uint8]:
    """All bytes of a batch, one tensor behind the other."""
    tensors = [batch.target, batch.weight, batch.jet_id, batch.process, batch.kinematics]
    for group in batch.groups.values():
        tensors += [group.features, group.mask]
        if group.four_vectors is not None:
            tensors.append(group.four_vectors)
    return np.concatenate([tensor.numpy().reshape(-1).view(np.uint8) for tensor in tensors])


def memcpy_seconds(batches: list[NDArray[np.uint8]], repeats: int = 5) -> float:
    """Seconds of the copy of a batch: distinct sources, one destination that is in use already; median."""
    target = np.zeros(max(map(len, batches)), np.uint8)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for batch in batches:
            target[: len(batch)] = batch
        times.append((time.perf_counter() - start) / len(batches))
    return statistics.median(times[1:])


def _rate(loader: BatchLoader, n_batches: int, batch_size: int, epochs: int = 3) -> float:
    """Jets/s, the best of some epochs after one that does not count."""
    best = 0.0
    for epoch in range(epochs + 1):
        batches = loader.epoch(epoch)
        start = time.perf_counter()
        for _ in range(n_batches):
            if next(batches, None) is None:
                raise DataError(f"epoch {epoch} ended before {n_batches} batches")
        if epoch:
            best = max(best, n_batches * batch_size / (time.perf_counter() - start))
    loader.close()
    return best
