"""Construction of a training set: weights, global order, shards, index and manifest."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import bhive_mltf
from bhive_mltf.config import Config
from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.content import refuse_equal_contents
from bhive_mltf.data.lz4_rows import kinematic_columns
from bhive_mltf.data.manifest import Accounting, Manifest, Source
from bhive_mltf.data.merge import merged
from bhive_mltf.data.padding import strip
from bhive_mltf.data.schema import Schema
from bhive_mltf.data.shards import clear, publish, write_jets
from bhive_mltf.data.staging import StagedFile
from bhive_mltf.data.weights import Grid, WeightTable, check_labels, reference_shape
from bhive_mltf.errors import DataError, DatasetMismatchError, ParameterError

logger = logging.getLogger(__name__)

_HALF_LIMIT = float(np.finfo(np.float16).max)


def check_parameters(config: Config, chunk_size: int) -> None:
    """Refuse what cannot be written, before anything is read.

    Raises
    ------
    ParameterError
        `chunk_size` is not positive.
    DataError
        The layout cannot hold the config's jets.
    """
    if chunk_size < 1:
        raise ParameterError(f"--chunk-size {chunk_size}: a shard holds one jet or more; the default is 100000")
    if config.dataset == "LZ4Dataset":
        kinematic_columns(Schema.of(config))
        if config.data_precision == "float16":
            raise DataError(
                f"config {config.name}: the LZ4 layout in float16 cannot hold its own number of rows (above 2048) "
                "and would round pt and eta: use `dataset: ArrowDataset`, or `data_precision: float32`"
            )


def construct(
    config: Config,
    staged: Sequence[Path],
    directory: Path,
    *,
    chunk_size: int,
    seed: int,
    filelist: Sequence[str],
    code_version: str = bhive_mltf.__version__,
) -> Manifest:
    """Write a training set from staged files; `processed_files.txt` comes last and says that all is there.

    Jets stand in the order of their keys (`staging.global_keys`), whatever the staged files, chunks and paths.

    Parameters
    ----------
    staged : staged files, in the order of their source files in `filelist`.
    chunk_size : jets per shard; the last one holds what is left.
    seed : of the global order, the same as at staging.
    filelist : the files asked for; recorded.

    Raises
    ------
    ParameterError, DataError, DatasetMismatchError, FilelistError
        Parameters out of range; no jets, too few labels or an empty reference flavour; staged files of another config
        or seed; the same content twice.
    """
    check_parameters(config, chunk_size)
    schema = Schema.of(config)
    files = [StagedFile(Path(path), schema) for path in staged]
    for file in files:
        if (file.record.seed, file.record.config_digest) != (seed, config.dataset_digest):
            raise DatasetMismatchError(
                f"'{file.path}' was staged with another config or seed: remove it and convert again"
            )
    sources = tuple(source for file in files for source in file.record.sources)
    refuse_equal_contents((source.path, int(source.content_id, 16)) for source in sources)
    accounting = _account(files, sources)
    histogram = _histogram(files, config)
    for warning in check_labels(histogram, schema.truths, config.reference_flavour, config.name):
        logger.warning("%s", warning)
    skipped = tuple(skip for file in files for skip in file.record.skipped)
    if skipped:
        logger.warning(
            "%d files that cannot be read are left out: %s", len(skipped), ", ".join(s.path for s in skipped)
        )
    weights = WeightTable(_grid(config), reference_shape(histogram, schema.truths.index(config.reference_flavour)))
    clear(directory)
    empty = Manifest(
        layout=config.dataset,
        schema=schema,
        n_jets=accounting.accepted,
        shards=(),
        sources=sources,
        accounting=accounting,
        config_name=config.name,
        config_digest=config.dataset_digest,
        seed=seed,
        chunk_size=chunk_size,
        code_version=code_version,
        filelist=tuple(filelist),
        skipped_files=skipped,
        digest="",
        precision=config.data_precision,
    )
    jets = (_finished(block, config, weights) for block in merged(files, empty.content_ids))
    manifest = write_jets(jets, empty, directory)
    publish(manifest, histogram, directory)
    return manifest


def _account(files: Sequence[StagedFile], sources: Sequence[Source]) -> Accounting:
    total = sum((file.record.accounting for file in files), Accounting())
    staged = sum(len(keys) for file in files for keys in file.keys)
    if not total.balanced or total.accepted != staged or staged != sum(source.accepted for source in sources):
        raise DataError(f"the staged files hold {staged} jets, but their records say: {total}: convert again")
    if not total.accepted:
        raise DataError(
            f"no jet of the {len(sources)} files is accepted ({total}): check the config's bins_pt, bins_eta and truths"
        )
    return total


def _grid(config: Config) -> Grid:
    return Grid(config.bins_pt, config.bins_eta)


def _histogram(files: Sequence[StagedFile], config: Config) -> NDArray[np.int64]:
    grid = _grid(config)
    histogram = np.zeros((len(config.truths), *grid.shape), np.int64)
    for file in files:
        for chunk in range(len(file)):
            histogram += grid.histogram(*file.labels(chunk))
    return histogram


def _finished(block: JetBlock, config: Config, weights: WeightTable) -> JetBlock:
    """The block as it is stored: weights looked up, inputs rounded if the config says so."""
    features, counts = dict(block.features), dict(block.counts)
    if config.data_precision == "float16":
        for name, old in block.counts.items():
            half = np.clip(features[name], -_HALF_LIMIT, _HALF_LIMIT).astype(np.float16).astype(np.float32)
            features[name], counts[name] = strip(half, old)
    weight = weights.look_up(block.kinematics, block.truth)
    return dataclasses.replace(block, features=features, counts=counts, weight=weight)
