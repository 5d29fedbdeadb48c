"""Conversion of groups of source files to staged files, in parallel processes."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bhive_mltf.config import Config
from bhive_mltf.data.convert import Converter
from bhive_mltf.data.filelist import is_remote
from bhive_mltf.data.manifest import Accounting, SkippedFile, Source
from bhive_mltf.data.processes import match_process
from bhive_mltf.data.root_tree import open_tree
from bhive_mltf.data.schema import Schema
from bhive_mltf.data.staging import FORMAT_VERSION, StagedRecord, StagedWriter, global_keys
from bhive_mltf.errors import CorruptFileError, DataError
from bhive_mltf.files import atomic


@dataclass(frozen=True)
class ReadOptions:
    """How much of a file is in memory at a time; `max_chunks` ends the reading early (debugging)."""

    max_jets: int = 50_000
    max_bytes: int = 64 << 20
    max_chunks: int | None = None

    @classmethod
    def for_debugging(cls) -> ReadOptions:
        """At most 20 chunks of 5000 jets, as upstream."""
        return cls(max_jets=5_000, max_chunks=20)


@dataclass(frozen=True)
class StageJob:
    """One staged file to make.

    paths : source files.
    target : where the staged file appears.
    seed : of the global order.
    skip_bad_files : leave files out that cannot be read whole, and record them.
    """

    config: Config
    paths: tuple[str, ...]
    target: Path
    seed: int
    skip_bad_files: bool = False
    options: ReadOptions = field(default_factory=ReadOptions)


def staged_name(
    config: Config, paths: Sequence[str], seed: int, *, debug: bool = False, skip_bad_files: bool = False
) -> str:
    """Name of the staged file of some source files: a digest of all that decides its content.

    Cheap: looks at path, size and time of change of each file. A missing file gives a name too.
    """
    files = [(path, *_stamp(path)) for path in paths]
    content = [FORMAT_VERSION, config.dataset_digest, config.processes, seed, debug, skip_bad_files, files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32] + ".arrow"


def _stamp(path: str) -> tuple[int, int]:
    if is_remote(path):
        return 0, 0
    try:
        status = os.stat(path)  # noqa: PTH116 - one call per file of a long list
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def stage(job: StageJob) -> StagedRecord:
    """Convert the files of a job to one staged file, which appears whole or not at all.

    Raises
    ------
    FilelistError
        A file matches no process.
    MissingBranchError, CorruptFileError, DataError
        A file cannot be used.
    """
    config = job.config
    converter = Converter(config)
    processes = [match_process(path, config.processes) for path in job.paths]
    sources: list[Source] = []
    skipped: list[SkippedFile] = []
    batches: list[int] = []
    total = Accounting()
    with atomic.replace_file(job.target) as temporary, _writer(temporary, config) as writer:
        for path, process in zip(job.paths, processes, strict=True):
            first = writer.n_batches
            try:
                source, accounting = _convert(job, converter, writer, path, process=process, source=len(sources))
            except CorruptFileError as error:
                if not job.skip_bad_files:
                    raise
                skipped.append(SkippedFile(path, str(error)))
                continue
            sources.append(source)
            total += accounting
            batches += range(first, writer.n_batches)
        record = StagedRecord(tuple(sources), tuple(skipped), total, tuple(batches), job.seed, config.dataset_digest)
        writer.close(record)
    return record


@contextmanager
def _writer(path: Path, config: Config) -> Iterator[StagedWriter]:
    writer = StagedWriter(path, Schema.of(config))
    try:
        yield writer
    finally:
        writer.abandon()


def _convert(
    job: StageJob, converter: Converter, writer: StagedWriter, path: str, *, process: int, source: int
) -> tuple[Source, Accounting]:
    total = Accounting(rejected=converter.no_rejections)
    with open_tree(path, job.config.treename, job.config.branches) as tree:
        converter.check(tree)
        for number, chunk in enumerate(tree.chunks(job.options.max_jets, job.options.max_bytes)):
            if number == job.options.max_chunks:
                break
            block, accounting = converter.convert(chunk, path, process, source)
            total += accounting
            if len(block):
                writer.append(block, global_keys(job.seed, tree.content_id, block.jet_id[:, 1]))
        identity = f"{tree.content_id:016x}"
        return Source(path, identity, tree.n_entries, total.accepted, process), total


def stage_many(jobs: Sequence[StageJob], workers: int = 1) -> list[StagedRecord]:
    """Run jobs in up to `workers` processes; results in the order of the jobs.

    The first error ends the rest and is raised here as it was there.
    """
    if min(workers, len(jobs)) <= 1:
        return [stage(job) for job in jobs]
    # spawn: the caller may hold threads and locks that a forked process would inherit.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        futures = [pool.submit(stage, job) for job in jobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise DataError(
                "a process of the conversion was killed, most likely for want of memory: use fewer workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
