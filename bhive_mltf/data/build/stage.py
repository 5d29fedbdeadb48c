"""Conversion of groups of source files to staged files, in parallel processes.

Where there are fewer groups than processes, a group is cut into pieces between the chunks that it is read in. Each
piece is written to a file of its own, whose record batches are then written to the one file of the group.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.build.spread import Task, spread
from bhive_mltf.data.build.staged_file import StagedRecord, StagedWriter, added_lost
from bhive_mltf.data.loader import order
from bhive_mltf.data.manifest import Accounting, SkippedFile, Source
from bhive_mltf.data.ntuples.filelist import match_process
from bhive_mltf.data.ntuples.jobs import StageJob
from bhive_mltf.data.ntuples.root_reader import RootTree, open_tree
from bhive_mltf.data.ntuples.selection import REASONS, Converter
from bhive_mltf.data.schema import Schema
from bhive_mltf.errors import CorruptFileError, MissingTreeError
from bhive_mltf.files import atomic, disk

# Smaller pieces than there are processes, so that none waits long for the last one.
_PIECES_PER_WORKER = 3
# What --skip-bad-files leaves out. A tree that no file has is an error of the config, which the construction tells.
_SKIPPED = (CorruptFileError, MissingTreeError)


@dataclass(frozen=True)
class Span:
    """Entries of one file of a job, cut between chunks; `stop` None: to the last."""

    number: int
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Piece:
    """Spans of a job, in order, and the file that their chunks go to."""

    job: StageJob
    spans: tuple[Span, ...]
    path: Path


@dataclass(frozen=True)
class SpanResult:
    """What became of a span: its part of a source, or the reason why the file is left out."""

    number: int
    source: Source | None
    accounting: Accounting = field(default_factory=Accounting)
    lost: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reason: str = ""


def global_keys(seed: int, content_id: int, entries: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The key of each entry of a source file; jets are stored by ascending key."""
    identity = np.full(len(entries), content_id, np.uint64)
    return order.random_bits(order.random_key(seed, "global order"), identity, entries.astype(np.uint64))


def stage(job: StageJob) -> StagedRecord:
    """Convert the files of a job to one staged file, which appears whole or not at all.

    Raises
    ------
    FilelistError
        A file matches no process.
    MissingTreeError, MissingBranchError, CorruptFileError, DataError
        A file cannot be used, or the disk is full.
    """
    _check_processes(job)
    with removing_stale_files(job.target), _target(job) as writer:
        converter = Converter(job.config)
        results = [_convert(job, converter, writer, Span(number)) for number in range(len(job.paths))]
        return _finish(job, writer, results)


def stage_many(jobs: Sequence[StageJob], workers: int = 1) -> list[StagedRecord]:
    """Run jobs in up to `workers` processes, this one among them; results in the order of the jobs.

    When there are fewer jobs than processes, jobs are cut into pieces; the staged jets are the same. The first error
    ends the rest and is raised here as it was there.
    """
    for job in jobs:
        _check_processes(job)
    pieces: list[list[Piece]] = [[] for _ in jobs]
    if 0 < len(jobs) < workers:
        found = [cut(job, _PIECES_PER_WORKER * -(-workers // len(jobs))) for job in jobs]
        pieces = [some if len(some) > 1 else [] for some in found]
    tasks: list[Task] = []
    for job, some in zip(jobs, pieces, strict=True):
        tasks += [(_stage_piece, piece) for piece in some] or [(stage, job)]
    with contextlib.ExitStack() as stack:
        for job, some in zip(jobs, pieces, strict=True):
            if some:
                stack.enter_context(removing_stale_files(job.target))
            for piece in some:
                stack.callback(piece.path.unlink, missing_ok=True)
        results = iter(spread(tasks, workers))
        return [
            _joined(job, some, list(itertools.islice(results, max(1, len(some)))))
            for job, some in zip(jobs, pieces, strict=True)
        ]


def _check_processes(job: StageJob) -> None:
    for path in job.paths:
        match_process(path, job.config.processes)


@contextmanager
def _target(job: StageJob) -> Iterator[StagedWriter]:
    """The writer of the staged file; not synced, since chunks have checksums that are held against them."""
    with (
        disk.writing(job.target),
        atomic.replace_file(job.target, durable=False) as temporary,
        _writer(temporary, job) as writer,
    ):
        yield writer


@contextmanager
def _writer(path: Path, job: StageJob) -> Iterator[StagedWriter]:
    writer = StagedWriter(path, Schema.of(job.config))
    try:
        yield writer
    finally:
        writer.abandon()


def _convert(job: StageJob, converter: Converter, writer: StagedWriter, span: Span) -> SpanResult:
    """Write the chunks of a span; a file that cannot be read is an error, or a reason if it may be skipped."""
    path = job.paths[span.number]
    process = match_process(path, job.config.processes)
    total = Accounting(rejected=dict.fromkeys(REASONS, 0))
    converter.lost = {}
    try:
        with open_tree(path, job.config.treename, job.config.branches) as tree:
            converter.check(tree)
            keys = functools.partial(global_keys, job.seed, tree.content_id)
            step, stop = _step_and_stop(job, tree)
            for chunk in tree.chunks(step, span.start, stop if span.stop is None else span.stop):
                block, accounting = converter.convert(chunk, path, process, span.number, keys)
                total += accounting
                if len(block):
                    writer.append(block, keys(block.jet_id[:, 1]), span.number)
            source = Source(path, f"{tree.content_id:016x}", tree.n_entries, total.accepted, process)
            lost = {name: tuple(n.tolist()) for name, n in converter.lost.items()}
            return SpanResult(span.number, source, total, lost)
    except _SKIPPED as error:
        if not job.skip_bad_files:
            raise
        return SpanResult(span.number, None, reason=str(error))


def _step_and_stop(job: StageJob, tree: RootTree) -> tuple[int, int]:
    """Jets per chunk of a file, and where the last chunk that is wanted ends."""
    options = job.options
    step = tree.step(options.max_jets, options.chunk_bytes)
    return step, tree.n_entries if options.max_chunks is None else min(tree.n_entries, options.max_chunks * step)


def _stage_piece(piece: Piece) -> list[SpanResult]:
    """Convert the spans of a piece to its file."""
    converter = Converter(piece.job.config)
    with disk.writing(piece.path), _writer(piece.path, piece.job) as writer:
        results = [_convert(piece.job, converter, writer, span) for span in piece.spans]
        writer.close(None, ())
        return results


def _joined(job: StageJob, pieces: Sequence[Piece], results: Sequence[Any]) -> StagedRecord:
    if not pieces:
        record: StagedRecord = results[0]
        return record
    flat = list(itertools.chain.from_iterable(results))
    with _target(job) as writer:
        for piece in pieces:
            writer.copy(piece.path, _kept(flat))
        return _finish(job, writer, flat)


def _kept(results: Sequence[SpanResult]) -> list[int]:
    """Numbers of the files of which each span could be read."""
    bad = {result.number for result in results if result.source is None}
    return sorted({result.number for result in results} - bad)


def _finish(job: StageJob, writer: StagedWriter, results: Sequence[SpanResult]) -> StagedRecord:
    """Write the record of what became of the spans of all files, and finish the file."""
    sources, kept = [], _kept(results)
    total = Accounting()
    for number in kept:
        spans = [result for result in results if result.number == number]
        accounting = sum((result.accounting for result in spans), Accounting())
        total += accounting
        first = next(result.source for result in spans if result.source is not None)
        sources.append(Source(first.path, first.content_id, first.entries, accounting.accepted, first.process))
    reasons = {result.number: result.reason for result in reversed(results) if result.source is None}
    skipped = tuple(SkippedFile(job.paths[number], reasons[number]) for number in sorted(reasons))
    lost = added_lost(result.lost for result in results if result.number in kept)
    record = StagedRecord(tuple(sources), skipped, total, job.seed, job.config.dataset_digest, lost)
    writer.close(record, kept)
    return record


def cut(job: StageJob, n_pieces: int) -> list[Piece]:
    """The job in up to `n_pieces` pieces of about equally many entries.

    Raises
    ------
    MissingTreeError, MissingBranchError, CorruptFileError, DataError
        A file cannot be used.
    """
    spans = list(itertools.chain.from_iterable(_spans(job, number) for number in range(len(job.paths))))
    total = sum(_entries(span) for span in spans)
    runs: dict[int, list[Span]] = {}
    before = 0
    for span in spans:
        middle = before + _entries(span) / 2
        run = runs.setdefault(min(n_pieces - 1, int(middle * n_pieces / max(1, total))), [])
        if run and run[-1].number == span.number:
            run[-1] = Span(span.number, run[-1].start, span.stop)
        else:
            run.append(span)
        before += _entries(span)
    return [Piece(job, tuple(run), temporary_part(job.target, i)) for i, run in runs.items()]


def _entries(span: Span) -> int:
    return (span.stop or 0) - span.start


def _spans(job: StageJob, number: int) -> list[Span]:
    """The chunks of a file; a file without any, and one to be skipped, as a whole."""
    try:
        with open_tree(job.paths[number], job.config.treename, job.config.branches) as tree:
            step, stop = _step_and_stop(job, tree)
    except _SKIPPED:
        if not job.skip_bad_files:
            raise
        return [Span(number)]
    return [Span(number, start, min(start + step, stop)) for start in range(0, stop, step)] or [Span(number)]


def temporary_part(target: Path, number: int) -> Path:
    """A path beside `target` for a part of it."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part{number}.tmp")


@contextmanager
def removing_stale_files(target: Path) -> Iterator[None]:
    """Remove what killed processes left of earlier attempts at `target`, unless another process is at it just now.

    Whoever makes a file shares a lock while doing so; the kernel drops it with the process. Temporary files of a target
    whose lock nobody shares are therefore nobody's.
    """
    path = target.with_name(f".{target.name}.lock")
    with disk.writing(target.parent, everything=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _share(path)
    try:
        yield
    finally:
        # the last one removes the file of the lock
        with contextlib.suppress(BlockingIOError):
            _try_alone(lock)
            path.unlink(missing_ok=True)
        os.close(lock)


def _share(path: Path) -> int:
    """The open file `.<target>.lock`, whose lock is shared; leftovers are removed if nobody shared it before."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with contextlib.suppress(BlockingIOError):
            if _try_alone(lock):
                for leftover in path.parent.glob(f"{path.stem}.*.tmp"):
                    leftover.unlink(missing_ok=True)
        # a file system without locks refuses
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        # not by inode: some file systems give another one to an open file
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)  # removed by the one who shared it last


def _try_alone(lock: int) -> bool:
    """Take the lock for this process alone; BlockingIOError if others share it, False where there are no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
