"""Conversion of groups of source files to staged files, in parallel processes."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bhive_mltf.data.build.pieces import Ledger, Outcome, Piece, Span, cut, edges_of, join, source_of
from bhive_mltf.data.build.spread import Task, spread
from bhive_mltf.data.build.staged_writer import StagedWriter
from bhive_mltf.data.build.staging import StagedRecord, global_keys
from bhive_mltf.data.build.stale_files import sweeping
from bhive_mltf.data.manifest import Accounting
from bhive_mltf.data.ntuples.jobs import StageJob
from bhive_mltf.data.ntuples.processes import match_process
from bhive_mltf.data.ntuples.root_reader import open_tree
from bhive_mltf.data.ntuples.selection import Converter
from bhive_mltf.data.schema import Schema
from bhive_mltf.errors import CorruptFileError
from bhive_mltf.files import atomic, disk

# Smaller pieces than there are processes, so that none waits long for the last one.
_PIECES_PER_WORKER = 3


def stage(job: StageJob) -> StagedRecord:
    """Convert the files of a job to one staged file, which appears whole or not at all.

    Raises
    ------
    FilelistError
        A file matches no process.
    MissingBranchError, CorruptFileError, DataError
        A file cannot be used, or the disk is full.
    """
    _check_processes(job)
    converter, ledger = Converter(job.config), Ledger(job)
    with sweeping(job.target), _target(job) as writer:
        for number in range(len(job.paths)):
            n_chunks = len(writer.chunks)
            outcome = _convert(job, converter, writer, Span(number), ledger.position)
            if outcome.source is None:
                writer.rewind(n_chunks)
            ledger.add([outcome])
        record = ledger.record()
        writer.close(record)
    return record


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


def _convert(job: StageJob, converter: Converter, writer: StagedWriter, span: Span, source: int) -> Outcome:
    """Write the chunks of a span; a file that cannot be read is an error, or an outcome if it may be skipped."""
    path = job.paths[span.number]
    total, first = Accounting(rejected=converter.no_rejections), len(writer.chunks)
    try:
        with open_tree(path, job.config.treename, job.config.branches) as tree:
            converter.check(tree)
            keys = functools.partial(global_keys, job.seed, tree.content_id)
            process = match_process(path, job.config.processes)
            step = tree.step(job.options.max_jets, job.options.chunk_bytes)
            stop = edges_of(job, tree)[-1] if span.stop is None else span.stop
            for chunk in tree.chunks(step, span.start, stop):
                block, accounting = converter.convert(chunk, path, process, source, keys)
                total += accounting
                if len(block):
                    writer.append(block, keys(block.jet_id[:, 1]), source)
            return Outcome(
                span.number, source_of(job, span.number, tree, total.accepted), total, tuple(writer.chunks[first:])
            )
    except CorruptFileError as error:
        if not job.skip_bad_files:
            raise
        return Outcome(span.number, None, reason=str(error))


def _stage_piece(piece: Piece) -> list[Outcome]:
    """Convert the spans of a piece to its file."""
    converter = Converter(piece.job.config)
    with disk.writing(piece.path), _writer(piece.path, piece.job) as writer:
        return [_convert(piece.job, converter, writer, span, span.number) for span in piece.spans]


def stage_many(jobs: Sequence[StageJob], workers: int = 1) -> list[StagedRecord]:
    """Run jobs in up to `workers` processes, this one among them; results in the order of the jobs.

    When there are fewer jobs than processes, jobs are cut into pieces; the staged files are the same bytes. The first
    error ends the rest and is raised here as it was there.
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
                stack.enter_context(sweeping(job.target))
            for piece in some:
                stack.callback(piece.path.unlink, missing_ok=True)
        results = iter(spread(tasks, workers))
        return [
            _joined(job, some, list(itertools.islice(results, max(1, len(some)))))
            for job, some in zip(jobs, pieces, strict=True)
        ]


def _joined(job: StageJob, pieces: Sequence[Piece], results: Sequence[Any]) -> StagedRecord:
    if not pieces:
        record: StagedRecord = results[0]
        return record
    with _target(job) as writer:
        return join(job, pieces, results, writer)
