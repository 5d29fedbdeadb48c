"""Batches of an epoch, the same whatever the number of workers and ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, get_args

import torch

from bhive_mltf.data.dataset import Dataset
from bhive_mltf.data.loader import order, targets
from bhive_mltf.data.loader.batch_plan import BatchPlan, Buckets, JetFilter, RankBatch, RankBatches
from bhive_mltf.data.loader.buffers import BatchShape, Ring, buffer_bytes, unpack
from bhive_mltf.data.loader.decode_cache import read_columns
from bhive_mltf.data.loader.prefetch import Prefetcher
from bhive_mltf.data.loader.rank_shares import rank_slice, work
from bhive_mltf.data.loader.reader import BatchReader
from bhive_mltf.data.loader.windows import LoaderView
from bhive_mltf.data.loader.workers import START_METHOD, Workers
from bhive_mltf.errors import DataError, ModelError, ParameterError, nearest
from bhive_mltf.interface import Batch, ModelInputs

if TYPE_CHECKING:
    from bhive_mltf.config import Config

Mode = Literal["training", "validation", "inference"]
# Batches that the user may hold while others are filled; of more than that, copies are made.
_HELD = 3


class BatchLoader:
    """One rank's batches of any epoch.

    Training: the order of the epoch, the last incomplete global batch dropped; `weighted` samples jets by
    their weight. Validation and inference: every jet once, in stored order, the last batch kept; with
    `weighted`, validation gives each jet its sampling probability as weight. The jets of a global
    batch and their order depend on the training set, `seed` and epoch alone.

    Parameters
    ----------
    dataset : open training set.
    jets : range of stored positions, from `split_ranges`.
    inputs : what the model reads.
    mode : training, validation or inference.
    batch_size : jets of a global batch, all ranks together.
    rank, world_size : this rank's share of each global batch. In training jets are dealt by work (`rank_shares`),
        else the share is `rank_slice`, which may be empty in the last batch.
    n_threads : worker processes; 0 reads in this process.
    seed : of order and sampling.
    weighted : jets count by their weight.
    unmatched : jets in none of the model's classes: `error`, `drop` (left out; inference predicts them with
        target -1) or `first` (they count as class 0, as upstream).
    process_weights : factors on the sampling probability by process, a larger one keeps more jets;
        default: those of `config`, if given.
    multiplicity_buckets : sort the jets of a window into so many buckets by their candidates and draw each batch of a
        training from one of them (`batch_plan.Buckets`); 0: batches are random. The order then depends on `batch_size`
        too.
    pin_memory : batches in pinned memory; without effect where there is no CUDA.
    start_method : of the workers, `fork` or `spawn`.

    Raises
    ------
    ParameterError
        A parameter out of its range, or more ranks than jets.
    ModelError
        Classes or columns that the training set does not have.
    DataError
        Jets in no class, fewer than two classes with jets, or fewer jets than one global batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        jets: range,
        inputs: ModelInputs,
        *,
        mode: Mode,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        n_threads: int = 0,
        seed: int,
        weighted: bool,
        unmatched: str = "error",
        process_weights: Mapping[str, float] | None = None,
        multiplicity_buckets: int = 0,
        pin_memory: bool = False,
        config: Config | None = None,
        start_method: str = START_METHOD,
    ) -> None:
        self.jets = jets
        self.batch_size = batch_size
        self.mode = mode
        self._inputs = inputs
        self._unmatched = targets.check_mode(unmatched)
        _check_parameters(mode, batch_size, rank, world_size, n_threads)
        if mode == "training" and world_size > len(jets):
            raise ParameterError(
                f"there are {world_size} ranks for {len(jets)} training jets: use fewer ranks or more files"
            )
        _check_inputs(dataset, inputs)
        if process_weights is None and config is not None:
            process_weights = config.process_weights
        factors = order.process_factors(dataset.schema.processes, process_weights) if weighted else None
        self._check_classes(dataset)
        training = mode == "training"
        wanted = JetFilter(
            dataset,
            seed,
            matched=inputs.classes if self._unmatched == "drop" and mode != "inference" else None,
            factors=factors if training else None,
        )
        buckets = _buckets(multiplicity_buckets, dataset, inputs) if training else None
        self._plan = BatchPlan(
            wanted, jets, batch_size=batch_size, shuffle=training, drop_last=training, buckets=buckets
        )
        if training:
            self.n_batches(0)
        weight_factors = factors if mode == "validation" else None
        self._view = LoaderView(dataset, jets, inputs, self._unmatched, weight_factors)
        self._shares = RankBatches(self._plan, inputs, rank, world_size, balanced=training)
        last = rank_slice(batch_size, world_size - 1, world_size)
        self._stream = BatchStream(
            self._view, last.stop - last.start, n_threads=n_threads, pin_memory=pin_memory, start_method=start_method
        )
        self._turn = 0

    def n_batches(self, epoch: int) -> int:
        """Global batches of the epoch, counted; DataError for a training without a full one."""
        n_batches = self._plan.n_batches(epoch)
        if self.mode == "training" and not n_batches:
            raise DataError(
                f"of {len(self.jets)} training jets, {self._plan.n_selected(epoch)} are left in epoch {epoch} after "
                f"sampling, fewer than one global batch of {self.batch_size}: take a smaller --batch-size, "
                "--loss-weighting True (no sampling) or more files"
            )
        return n_batches

    def n_jets(self, epoch: int) -> int:
        """Jets in the batches of the epoch, all ranks together."""
        return min(self._plan.n_selected(epoch), self.n_batches(epoch) * self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The shares of this rank of the global batches of `epoch`, from batch number `start` on.

        A new call ends the iterator of an earlier one.
        """
        if start < 0:
            raise ParameterError(f"an epoch cannot start at batch {start}: batches count from 0")
        self._turn += 1
        return self._batches(self._turn, epoch, start)

    def shares(self, epoch: int) -> Iterator[RankBatch]:
        """What is to be read for each batch of an epoch; for measurements."""
        return self._shares.batches(epoch)

    def reader(self, n_buffers: int, buffer_bytes: int) -> BatchReader:
        """A reader of its own; for measurements."""
        return BatchReader(self._view, n_buffers, buffer_bytes, 1, shared=False)

    def close(self) -> None:
        """End the worker processes; another epoch starts them again."""
        self._turn += 1
        self._stream.close()

    def _batches(self, turn: int, epoch: int, start: int) -> Iterator[Batch]:
        self._expect(turn, epoch)
        self._stream.start(self._shares.batches(epoch, start))
        while (batch := self._stream.next()) is not None:
            yield batch
            # Its memory is used again as soon as nobody holds it.
            del batch
            self._expect(turn, epoch)

    def _expect(self, turn: int, epoch: int) -> None:
        if turn != self._turn:
            raise RuntimeError(f"the batches of epoch {epoch} ended: epoch() or close() was called since")

    def _check_classes(self, dataset: Dataset) -> None:
        classes = self._inputs.classes
        counts = targets.count_classes(dataset.index.truth_bits, self.jets, dataset.schema.truths, classes)
        targets.check_unmatched(counts, self._unmatched, classes)
        if self.mode == "training":
            targets.check_filled(counts, self._unmatched)


class BatchStream:
    """Batches as they are filled, by this process or by workers that stay from one epoch to the next.

    Parameters
    ----------
    n_jets : of this rank in a batch, at most.
    n_threads : worker processes; 0 reads in this process.
    """

    def __init__(self, view: LoaderView, n_jets: int, *, n_threads: int, pin_memory: bool, start_method: str) -> None:
        self._view, self._n_jets = view, n_jets
        self._n_threads, self._start_method = n_threads, start_method
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._batches: Iterator[RankBatch] = iter(())
        self._reader: BatchReader | None = None
        self._ring: Ring | None = None
        self._prefetcher: Prefetcher | None = None
        self.workers: Workers | None = None

    def start(self, batches: Iterator[RankBatch]) -> None:
        """Turn to other batches; what is under way is dropped."""
        try:
            if self._reader is None:
                self._open()
            self._batches = batches
            if self._prefetcher is not None:
                self._prefetcher.start(batches)
        except BaseException:
            self.close()
            raise

    def next(self) -> Batch | None:
        """The next batch, None behind the last. An error ends the workers.

        Raises
        ------
        BhiveError
            The reader's, whether it happened here or in a worker.
        TrainingError
            A worker died.
        """
        if self._reader is None or self._ring is None:
            raise RuntimeError("no epoch has been started")
        try:
            found = self._prefetcher.next() if self._prefetcher else self._read(self._reader, self._ring)
        except BaseException:
            self.close()
            raise
        return None if found is None else self._hand_over(self._ring, *found)

    def close(self) -> None:
        """End the workers; `start` starts them again."""
        if self.workers is not None:
            self.workers.close()
        self._reader = self._ring = self._prefetcher = self.workers = None

    def _open(self) -> None:
        n_threads, size = self._n_threads, buffer_bytes(self._view.inputs, self._n_jets)
        reader = BatchReader(self._view, 2 * n_threads + _HELD + 1, size, 2 if n_threads else 1, shared=n_threads > 0)
        ring = Ring(reader.buffers)
        if n_threads:
            self.workers = Workers(reader, n_threads, self._start_method)
            n_arenas = reader.arenas.number if reader.arenas else 0
            self._prefetcher = Prefetcher(self.workers, ring, reader.buffers, n_arenas)
        if self._pin_memory:
            # After the workers are there: they must not inherit what CUDA keeps of these pages.
            reader.buffers.pin()
        self._reader, self._ring = reader, ring

    def _read(self, reader: BatchReader, ring: Ring) -> tuple[int, BatchShape] | None:
        """Read the next batch here: number of its buffer, and its shape."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        number = ring.take()
        if number is None:
            raise RuntimeError("no buffer is free")
        reader.read(batch, number)
        return number, batch.shape

    def _hand_over(self, ring: Ring, number: int, shape: BatchShape) -> Batch:
        inputs = self._view.inputs
        if ring.n_lent < _HELD:
            return unpack(ring.lend(number), shape, inputs, pin_memory=self._pin_memory)
        kept = ring.copy(number, shape.n_bytes(inputs), pin_memory=self._pin_memory)
        return unpack(kept, shape, inputs, pin_memory=self._pin_memory)


def _check_parameters(mode: str, batch_size: int, rank: int, world_size: int, n_threads: int) -> None:
    if mode not in get_args(Mode):
        raise ParameterError(f"the loader has no mode '{mode}': there are {', '.join(get_args(Mode))}")
    if batch_size < 1:
        raise ParameterError(f"--batch-size is {batch_size}: give the jets of a global batch, 1 or more")
    if n_threads < 0:
        raise ParameterError(f"--n-threads is {n_threads}: give the number of loader workers, 0 or more")
    if not 0 <= rank < world_size:
        raise ParameterError(f"rank {rank} is not among the ranks 0 to {world_size - 1}")
    if world_size > batch_size:
        raise ParameterError(
            f"there are {world_size} ranks for a global batch of {batch_size} jets: "
            "use fewer ranks or a larger --batch-size"
        )


def _buckets(number: int, dataset: Dataset, inputs: ModelInputs) -> Buckets | None:
    if number < 0:
        raise ParameterError(f"--multiplicity-buckets is {number}: give 0 (off) or a number of buckets")
    if not number:
        return None
    if inputs.padding == "configured":
        raise ParameterError(
            f"--multiplicity-buckets is {number}, but the model pads all jets to the configured length: leave it out"
        )
    return Buckets(number, lambda positions: work(dataset.index, positions, inputs))


def _check_inputs(dataset: Dataset, inputs: ModelInputs) -> None:
    groups = {group.name: group.columns for group in dataset.schema.groups}
    for name, columns in read_columns(inputs).items():
        if name not in groups:
            raise ModelError(f"the model reads the group '{name}', but the training set has {', '.join(groups)} only")
        for column in columns:
            if column not in groups[name]:
                raise ModelError(
                    f"the model reads the column '{column}' of group '{name}', which the training set does not "
                    f"have; nearest: {', '.join(nearest(column, groups[name]))}"
                )
