"""Upstream's LZ4 datasets, which have no manifest: it is derived by reading each shard once.

The ids of the jets in their ntuples are not known: jet ids are (shard, row). Upstream's frames have no checksums: those
of their blocks are kept beside the manifest.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import bhive_mltf
from bhive_mltf.config import Config
from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.build.set_writer import (
    BATCH_JETS,
    BLOCK_CHECKS,
    FILES,
    INDEX,
    SEEK_POINTS,
    WEIGHTS,
    side_checksums,
)
from bhive_mltf.data.index import IndexWriter, write_index
from bhive_mltf.data.layouts.lz4_frame import BLOCK_CHECK, SeekPoints
from bhive_mltf.data.layouts.lz4_rows import HEADER_NUMBERS, LZ4Shard, n_columns
from bhive_mltf.data.manifest import Accounting, DatasetDigest, Manifest, Shard, Source, content_id, file_checksum
from bhive_mltf.data.schema import Schema, choose_columns
from bhive_mltf.errors import CorruptFileError
from bhive_mltf.files import atomic, disk
from bhive_mltf.files.text import read_text

logger = logging.getLogger(__name__)


def derive(config: Config, directory: Path, names: Sequence[str], target: Path) -> Manifest:
    """Read the shards and write manifest, index and seek points to `target`, the manifest last.

    Parameters
    ----------
    names : shards, by name in `directory` or by full path.

    Raises
    ------
    CorruptFileError
        A shard is not whole, has other columns than the config describes, or other jets than weights.json says.
    """
    with disk.writing(target):
        return _derive(config, directory, names, target)


def _derive(config: Config, directory: Path, names: Sequence[str], target: Path) -> Manifest:
    shards = [directory / name for name in names]
    logger.info("reading %d LZ4 files once, to derive the manifest that they do not have", len(shards))
    target.mkdir(parents=True, exist_ok=True)
    schema = Schema.of(config)
    ids = np.array([content_id(path) for path in shards], np.uint64)
    digest = DatasetDigest(schema, ids)
    records: list[Shard] = []
    with write_index(target / INDEX, [group.name for group in schema.candidate_groups], len(schema.truths)) as index:
        for number, path in enumerate(shards):
            shard = _derive_shard(path, number, config=config, target=target, index=index, digest=digest)
            records.append(dataclasses.replace(shard, file=names[number]))
    sources = tuple(
        Source(str(path), f"{identity:016x}", shard.rows, shard.rows, -1)
        for path, identity, shard in zip(shards, ids, records, strict=True)
    )
    _check_rows(directory, records)
    n_jets = sum(shard.rows for shard in records)
    manifest = Manifest(
        layout="LZ4Dataset",
        schema=schema,
        n_jets=n_jets,
        shards=tuple(records),
        sources=sources,
        accounting=Accounting(n_jets, n_jets),
        config_name=config.name,
        config_digest=config.dataset_digest,
        seed=0,
        chunk_size=max(shard.rows for shard in records),
        code_version=bhive_mltf.__version__,
        filelist=tuple(str(path) for path in shards),
        skipped_files=(),
        digest=digest.hexdigest(),
        precision=config.data_precision,
        derived=True,
        jet_ids=False,
    )
    manifest = dataclasses.replace(manifest, files=side_checksums(manifest, target, directory))
    manifest.write(target)
    return manifest


def _check_rows(directory: Path, records: Sequence[Shard]) -> None:
    """Refuse a list of shards or a shard that is shorter than upstream's own account of it."""
    path = directory / WEIGHTS
    if not path.exists():
        return
    try:
        account = json.loads(read_text(path))
        rows, n_shards = list(account["chunk_size"]), len(account["sum_weight"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"'{path}' cannot be read ({error!r}): restore it from where it came from") from error
    if n_shards != len(records):
        raise CorruptFileError(
            f"'{directory / FILES}' names {len(records)} shards, but {WEIGHTS} has {n_shards}: restore what is missing"
        )
    # Older sets have one number for all shards.
    for shard, expected in zip(records, rows if len(rows) == n_shards else [], strict=False):
        if shard.rows != expected:
            raise CorruptFileError(
                f"the shard '{shard.file}' of '{directory}' has {shard.rows} jets, but {WEIGHTS} says {expected}: "
                "restore it from where it came from"
            )


def _derive_shard(
    path: Path, number: int, *, config: Config, target: Path, index: IndexWriter, digest: DatasetDigest
) -> Shard:
    shard = LZ4Shard(path, Schema.of(config), config.data_precision)
    points = SeekPoints(shard.frame.header.linked)
    checks: list[tuple[int, int]] = []
    rows, sum_weight = 0, 0.0
    for block in _blocks(shard, config, points, checks):
        numbered = dataclasses.replace(block, jet_id=block.jet_id + np.array([number, 0]))
        index.append(numbered)
        digest.update(numbered)
        rows += len(block)
        sum_weight += float(block.weight.sum(dtype=np.float64))
    if not rows:
        raise CorruptFileError(f"'{path}' holds no jets: remove it from processed_files.txt")
    atomic.write_array(target / SEEK_POINTS.format(number), points.array())
    if not shard.frame.header.block_checksums:
        atomic.write_array(target / BLOCK_CHECKS.format(number), np.array(checks, BLOCK_CHECK))
    return Shard(path.name, rows, sum_weight, path.stat().st_size, file_checksum(path))


def _blocks(shard: LZ4Shard, config: Config, points: SeekPoints, checks: list[tuple[int, int]]) -> Iterator[JetBlock]:
    """All jets of a shard, at most 2048 at a time; seek points and block checksums are collected on the way."""
    schema = Schema.of(config)
    choice = choose_columns(schema)
    kind = np.dtype(config.data_precision).newbyteorder("<")
    width = n_columns(schema) * kind.itemsize
    held, row, total = bytearray(), 0, 0
    skip = HEADER_NUMBERS * kind.itemsize
    for piece in shard.frame.blocks():
        points.add(piece)
        checks.append((piece.position, shard.frame.block_checksum(piece.position)))
        total += len(piece.content)
        held += piece.content
        if skip and len(held) >= skip:
            del held[:skip]
            skip = 0
        while len(held) >= BATCH_JETS * width:
            rows = np.frombuffer(bytes(held[: BATCH_JETS * width]), kind).reshape(BATCH_JETS, -1)
            yield shard.block(rows, row, choice)
            del held[: BATCH_JETS * width]
            row += BATCH_JETS
    shard.n_rows(total)
    if held:
        yield shard.block(np.frombuffer(bytes(held), kind).reshape(-1, n_columns(schema)), row, choice)
