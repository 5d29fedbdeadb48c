"""The files of a training set directory and the order in which they are written.

Shards, index, histogram, weights, manifest, and last `processed_files.txt`: without it the set is not there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data import manifest as manifests
from bhive_mltf.data.block import JetBlock, regroup
from bhive_mltf.data.build.merge import in_background
from bhive_mltf.data.index import IndexWriter, write_index
from bhive_mltf.data.layouts.arrow_format import ArrowShardWriter
from bhive_mltf.data.layouts.column_planes import planes_of
from bhive_mltf.data.layouts.lz4_frame import FrameReader, SeekPoints
from bhive_mltf.data.layouts.lz4_rows import LZ4ShardWriter
from bhive_mltf.data.manifest import DatasetDigest, Manifest, Shard, file_checksum
from bhive_mltf.data.weighting.report import FILE_NAME as WEIGHTING
from bhive_mltf.files import atomic

BATCH_JETS = 2_048
INDEX, HISTOGRAM, WEIGHTS, FILES = "index.npy", "histogram.npy", "weights.json", "processed_files.txt"
# Beside an LZ4 shard, by its number: jet ids, seek points, and checksums of the blocks of a frame that has none.
IDS, SEEK_POINTS, BLOCK_CHECKS = "file_{}.ids.npy", "file_{}.seek.npy", "file_{}.blocks.npy"
_WRITTEN = ("file_*.arrow", "file_*.lz4", "file_*.npy", INDEX, HISTOGRAM, WEIGHTS, WEIGHTING, "spectra.*")


def clear(directory: Path) -> None:
    """Remove what an earlier construction left, the files that make it look complete first."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in (FILES, manifests.FILE_NAME):
        (directory / name).unlink(missing_ok=True)
    for pattern in (FILES, manifests.FILE_NAME, *_WRITTEN):
        for path in (*directory.glob(pattern), *directory.glob(f".{pattern}.*.tmp")):
            path.unlink()


def write_jets(
    jets: Iterator[JetBlock],
    manifest: Manifest,
    directory: Path,
    shard_rows: Sequence[int] | None = None,
    *,
    threads: int = 1,
) -> Manifest:
    """Write shards and index of `manifest.n_jets` jets; returns the manifest with its shards and digest.

    shard_rows : jets per shard; None: `manifest.chunk_size`, the last one what is left.
    threads : with more than one, a batch is encoded and written while the next one is put together, and a shard is
        brought to the disk while the next one is written.
    """
    schema = manifest.schema
    digest = DatasetDigest(schema, manifest.content_ids)
    groups = [group.name for group in schema.candidate_groups]
    rows = shard_rows or [
        min(manifest.chunk_size, manifest.n_jets - first) for first in range(0, manifest.n_jets, manifest.chunk_size)
    ]
    shard_edges = itertools.pairwise(itertools.accumulate(rows, initial=0))
    sizes = [[b - a for a, b in itertools.pairwise(batch_edges(*shard))] for shard in shard_edges]
    blocks = regroup(jets, itertools.chain.from_iterable(sizes))
    shards: list[Future[Shard]] = []
    with write_index(directory / INDEX, groups, len(schema.truths)) as index, ThreadPoolExecutor(1, "shard") as pool:
        for number, n_rows in enumerate(rows):
            watched = _watched(itertools.islice(blocks, len(sizes[number])), index, digest)
            with contextlib.ExitStack() as stack:
                finish = _write_shard(
                    stack, watched, manifest, directory, number=number, n_rows=n_rows, apart=threads > 1
                )
                if shards:
                    # Its error ends this shard too.
                    shards[-1].result()
                shards.append(pool.submit(finish, stack.pop_all()))
            if threads <= 1:
                shards[-1].result()
    return dataclasses.replace(manifest, shards=tuple(shard.result() for shard in shards), digest=digest.hexdigest())


def batch_edges(start: int, stop: int) -> list[int]:
    """Edges of the batches of the jets [start, stop) of a set: multiples of their size, as of the loader's blocks."""
    return [start, *range(start // BATCH_JETS * BATCH_JETS + BATCH_JETS, stop, BATCH_JETS), stop]


def _watched(blocks: Iterator[JetBlock], index: IndexWriter, digest: DatasetDigest) -> Iterator[JetBlock]:
    for block in blocks:
        index.append(block)
        digest.update(block)
        yield block


def _write_shard(
    stack: contextlib.ExitStack,
    blocks: Iterator[JetBlock],
    manifest: Manifest,
    directory: Path,
    *,
    number: int,
    n_rows: int,
    apart: bool,
) -> Callable[[contextlib.ExitStack], Shard]:
    """Write a shard to a temporary file that `stack` renames; returns what is left to do, `stack` its argument."""
    name = f"file_{number}.{'arrow' if manifest.layout == 'ArrowDataset' else 'lz4'}"
    temporary = stack.enter_context(atomic.replace_file(directory / name))
    sum_weight, ids = 0.0, []
    with contextlib.closing(_open(temporary, manifest, n_rows)) as writer:
        for block in in_background(writer.append, blocks, apart=apart):
            sum_weight += float(block.weight.sum(dtype=np.float64))
            ids.append(block.jet_id)

    def finish(renaming: contextlib.ExitStack) -> Shard:
        with renaming:
            checksum, size = file_checksum(temporary), temporary.stat().st_size
        if manifest.layout == "LZ4Dataset":
            atomic.write_array(directory / IDS.format(number), np.concatenate(ids))
            write_seek_points(directory / name, number, directory)
        return Shard(name, n_rows, sum_weight, size, checksum)

    return finish


def _open(path: Path, manifest: Manifest, n_rows: int) -> ArrowShardWriter | LZ4ShardWriter:
    if manifest.layout == "LZ4Dataset":
        return LZ4ShardWriter(path, manifest.schema, n_rows)
    return ArrowShardWriter(path, manifest.schema, planes_of(manifest), manifest.compression)


def write_seek_points(shard: Path, number: int, directory: Path) -> None:
    """Read an LZ4 shard once and write its seek points to `directory`."""
    frame = FrameReader(shard)
    points = SeekPoints(frame.header.linked)
    for block in frame.blocks():
        points.add(block)
    atomic.write_array(directory / SEEK_POINTS.format(number), points.array())


def side_checksums(manifest: Manifest, *directories: Path) -> dict[str, str]:
    """Checksums of the files of a set beside its shards, by name; those that are in one of `directories`."""
    names = [INDEX, HISTOGRAM, WEIGHTS, WEIGHTING]
    for number in range(len(manifest.shards)):
        names += [name.format(number) for name in (IDS, SEEK_POINTS, BLOCK_CHECKS)]
    found = {name: side_file(name, *directories) for name in names}
    return {name: file_checksum(path) for name, path in found.items() if path is not None}


def side_file(name: str, *directories: Path) -> Path | None:
    """A file beside the shards, in the first of `directories` that has it."""
    return next((folder / name for folder in directories if (folder / name).exists()), None)


def publish(manifest: Manifest, histogram: NDArray[np.generic], directory: Path) -> Manifest:
    """Write what makes the set complete, the list of shards last; returns the manifest as written."""
    atomic.write_array(directory / HISTOGRAM, histogram.astype(np.float32))
    weights = {
        "chunk_size": [shard.rows for shard in manifest.shards],
        "sum_weight": [shard.sum_weight for shard in manifest.shards],
    }
    atomic.write_text(directory / WEIGHTS, json.dumps(weights) + "\n")
    manifest = dataclasses.replace(manifest, files=side_checksums(manifest, directory))
    manifest.write(directory)
    write_file_list(manifest, directory, directory)
    return manifest


def write_file_list(manifest: Manifest, directory: Path, place: Path) -> None:
    """Write `processed_files.txt` to `directory`, of shards that are or will be in `place`."""
    atomic.write_text(directory / FILES, "\n".join(str(place.absolute() / shard.file) for shard in manifest.shards))
