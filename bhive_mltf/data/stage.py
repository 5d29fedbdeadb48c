"""Conversion of groups of source files to staged files, in parallel processes."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from bhive_mltf.config import Config
from bhive_mltf.data.convert import Converter
from bhive_mltf.data.jobs import StageJob
from bhive_mltf.data.manifest import Accounting, SkippedFile, Source
from bhive_mltf.data.processes import match_process
from bhive_mltf.data.root_tree import open_tree
from bhive_mltf.data.schema import Schema
from bhive_mltf.data.staging import StagedRecord, StagedWriter, global_keys
from bhive_mltf.errors import CorruptFileError, DataError
from bhive_mltf.files import atomic


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
