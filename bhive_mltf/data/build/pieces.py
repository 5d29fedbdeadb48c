"""A job cut into pieces for several processes, and the staged file put together from what they wrote.

Pieces are cut between chunks, and the chunks of a file do not depend on who converts them: the staged file is the same
bytes for any number of processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bhive_mltf.data.build.staged_writer import StagedWriter
from bhive_mltf.data.build.staging import StagedChunk, StagedRecord
from bhive_mltf.data.build.stale_files import temporary_part
from bhive_mltf.data.manifest import Accounting, SkippedFile, Source
from bhive_mltf.data.ntuples.jobs import StageJob
from bhive_mltf.data.ntuples.processes import match_process
from bhive_mltf.data.ntuples.root_reader import RootTree, open_tree
from bhive_mltf.errors import CorruptFileError


@dataclass(frozen=True)
class Span:
    """Chunks of one file of a job: those between the entries `start` and `stop`; None: to the last."""

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
class Outcome:
    """What became of a span: its part of a source and its chunks, or the reason why the file cannot be read."""

    number: int
    source: Source | None
    accounting: Accounting = field(default_factory=Accounting)
    chunks: tuple[StagedChunk, ...] = ()
    reason: str = ""


def edges_of(job: StageJob, tree: RootTree) -> list[int]:
    """Where the chunks of a file begin, and where the last one ends."""
    step = tree.step(job.options.max_jets, job.options.chunk_bytes)
    edges = [*range(0, tree.n_entries, step), tree.n_entries]
    return edges if job.options.max_chunks is None else edges[: job.options.max_chunks + 1]


def cut(job: StageJob, n_pieces: int) -> list[Piece]:
    """The job in up to `n_pieces` pieces of about equally many entries.

    Raises
    ------
    MissingBranchError, CorruptFileError, DataError
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
            chunks = itertools.pairwise(edges_of(job, tree))
    except CorruptFileError:
        if not job.skip_bad_files:
            raise
        return [Span(number)]
    return [Span(number, start, stop) for start, stop in chunks] or [Span(number)]


def join(
    job: StageJob, pieces: Sequence[Piece], results: Sequence[Sequence[Outcome]], writer: StagedWriter
) -> StagedRecord:
    """Copy what the pieces wrote to one staged file, files in the order of the job."""
    outcomes = [(outcome, piece.path) for piece, result in zip(pieces, results, strict=True) for outcome in result]
    ledger = Ledger(job)
    for number in range(len(job.paths)):
        parts = [(outcome, path) for outcome, path in outcomes if outcome.number == number]
        for outcome, path in parts:
            if all(other.source is not None for other, _ in parts):
                writer.copy(path, outcome.chunks, ledger.position)
        ledger.add([outcome for outcome, _ in parts])
    record = ledger.record()
    writer.close(record)
    return record


class Ledger:
    """Collects what became of the files of a job, in their order."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        self._sources: list[Source] = []
        self._skipped: list[SkippedFile] = []
        self._total = Accounting()

    @property
    def position(self) -> int:
        """Of the next source."""
        return len(self._sources)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """All spans of the next file, in order."""
        for outcome in outcomes:
            if outcome.source is None:
                path = self._job.paths[outcome.number]
                self._skipped.append(SkippedFile(path, outcome.reason))
                return
        accounting = sum((outcome.accounting for outcome in outcomes), Accounting())
        sources = [outcome.source for outcome in outcomes if outcome.source is not None]
        self._total += accounting
        first = sources[0]
        self._sources.append(Source(first.path, first.content_id, first.entries, accounting.accepted, first.process))

    def record(self) -> StagedRecord:
        """What the staged file was made from."""
        job = self._job
        return StagedRecord(
            tuple(self._sources), tuple(self._skipped), self._total, job.seed, job.config.dataset_digest
        )


def source_of(job: StageJob, number: int, tree: RootTree, accepted: int) -> Source:
    """A file of the job as a source."""
    path = job.paths[number]
    return Source(path, f"{tree.content_id:016x}", tree.n_entries, accepted, match_process(path, job.config.processes))
