"""The same jets in another layout or in shards of another size."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.build.set_writer import publish, write_file_list, write_jets
from bhive_mltf.data.dataset import Dataset
from bhive_mltf.data.layouts import lz4_rows
from bhive_mltf.data.manifest import Layout, Manifest
from bhive_mltf.data.verification import Progress, digest_of, ranges, silent
from bhive_mltf.data.weighting.report import FILE_NAME as WEIGHTING
from bhive_mltf.errors import CorruptFileError, ParameterError
from bhive_mltf.files import atomic, disk
from bhive_mltf.files.records import Record


def convert(
    dataset: Dataset,
    target: Path,
    layout: Layout,
    chunk_size: int | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Write the jets of a training set to `target`, in the same order; it appears whole or not at all.

    What was written is read again: its digest is that of the source.

    Parameters
    ----------
    chunk_size : jets per shard; None: shards of as many jets as now, so that splits by shards stay.
    progress : called with jets; each counts twice, when written and when read again.

    Raises
    ------
    ParameterError
        The target exists, or the chunk size is not positive.
    DataError
        The layout cannot hold these jets, or the disk is full.
    CorruptFileError
        The source does not have the digest of its manifest.
    """
    if target.exists():
        raise ParameterError(f"'{target}' exists: give a directory that does not, or remove it")
    if chunk_size is not None and chunk_size < 1:
        raise ParameterError(f"--chunk-size {chunk_size}: a shard holds one jet or more")
    old = dataset.manifest
    if layout == "LZ4Dataset":
        lz4_rows.check_layout(dataset.schema, old.precision, old.config_name)
    rows = None if chunk_size else [shard.rows for shard in old.shards]
    empty = dataclasses.replace(
        old, layout=layout, shards=(), digest="", chunk_size=chunk_size or old.chunk_size, files={}
    )
    with disk.writing(target), atomic.replace_directory(target) as temporary:
        written = write_jets(_jets(dataset, progress), empty, temporary, rows)
        if written.digest != old.digest:
            raise CorruptFileError(
                f"the jets of '{dataset.directory}' are not those of its manifest: run bhive-mltf dataset verify"
            )
        _copy_reports(dataset.directory, temporary)
        written = publish(written, dataset.histogram, temporary)
        write_file_list(written, temporary, target)
        _copy_record(dataset.directory, temporary, written.chunk_size)
        if digest_of(Dataset(temporary, written), progress) != old.digest:
            raise CorruptFileError(f"what was written for '{target}' reads as other jets: try another disk")
    return written


def _jets(dataset: Dataset, progress: Progress) -> Iterator[JetBlock]:
    for _, start, stop in ranges(dataset):
        yield dataset.read(start, stop)
        progress(stop - start)


def _copy_reports(source: Path, target: Path) -> None:
    """What says how the weights came about."""
    for path in (*source.glob(WEIGHTING), *source.glob("spectra.*")):
        shutil.copyfile(path, target / path.name)


def _copy_record(source: Path, target: Path, chunk_size: int) -> None:
    """The parameters that tasks hold a directory against."""
    record = Record.read(source)
    if record is not None:
        dataclasses.replace(record, parameters={**record.parameters, "chunk_size": chunk_size}).write(target)
