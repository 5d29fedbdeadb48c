"""Construction of a training set: weights, global order, shards, index and manifest."""

from __future__ import annotations

import dataclasses
import functools
import logging
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import bhive_mltf
from bhive_mltf.config import Config
from bhive_mltf.data.block import JetBlock, strip
from bhive_mltf.data.build.merge import DEFAULT_BYTES, merged
from bhive_mltf.data.build.set_writer import clear, publish, write_jets
from bhive_mltf.data.build.staged_file import StagedFile, added_lost
from bhive_mltf.data.layouts.column_planes import full_width
from bhive_mltf.data.layouts.lz4_rows import check_layout
from bhive_mltf.data.manifest import Accounting, Manifest, SkippedFile, Source, refuse_equal_contents
from bhive_mltf.data.ntuples.jobs import BASE_MB, DEFAULT_MB, check_memory
from bhive_mltf.data.schema import Schema
from bhive_mltf.data.weighting.grid import Grid, check_labels
from bhive_mltf.data.weighting.methods import NONE, Weighting, check_weighting, weigh
from bhive_mltf.errors import DataError, DatasetMismatchError, ParameterError
from bhive_mltf.files import disk

logger = logging.getLogger(__name__)

# Columns that lose a larger share of the jets are told, so many of them.
_LOST_SHARE, _LOST_SHOWN = 0.001, 5
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
        check_layout(Schema.of(config), config.data_precision, config.name)
        if config.compression != "none":
            raise DataError(
                f"config {config.name}: `compression: {config.compression}` is for Arrow shards, the LZ4 layout has "
                "its own: remove it, or use `dataset: ArrowDataset`"
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
    weighting: str = "reference",
    is_test_set: bool = False,
    memory_mb: int = DEFAULT_MB,
    threads: int = 1,
) -> Manifest:
    """Write a training set from staged files; `processed_files.txt` comes last and says that all is there.

    Jets stand in the order of their keys (`stage.global_keys`), whatever the staged files, chunks and paths.

    Parameters
    ----------
    staged : staged files, in the order of their source files in `filelist`.
    chunk_size : jets per shard; the last one holds what is left.
    seed : of the global order, the same as at staging.
    filelist : the files asked for; recorded.
    weighting : how the jets' weights are found, a name of `weighting.methods`.
    is_test_set : jets that are only evaluated may lack the reference flavour, or all labels but one; their weights,
        which nobody needs, are 1 then, and the manifest has the weighting `none`.
    memory_mb : budget of this process in MB, pages of mapped files not counted.
    threads : that put jets in order while others are written; with more than one, writing has a thread of its own.

    Raises
    ------
    ParameterError, DataError, DatasetMismatchError, FilelistError
        Parameters out of range; no jets, too few labels or an empty reference flavour; staged files of another config
        or seed; the same content twice.
    """
    check_parameters(config, chunk_size)
    check_weighting(weighting)
    max_bytes = _block_bytes(memory_mb, threads)
    schema = Schema.of(config)
    files = _open_staged(staged, schema, config, seed)
    sources = tuple(source for file in files for source in file.record.sources)
    refuse_equal_contents((source.path, int(source.content_id, 16)) for source in sources)
    accounting = _account(files, sources)
    histogram = _histogram(files, config)
    for warning in lost_jets(added_lost(file.record.lost for file in files), histogram, config, accounting.accepted):
        logger.warning("%s", warning)
    weights = _weigh(histogram, config, weighting, is_test_set=is_test_set)
    skipped = _skipped(files)
    with disk.writing(directory):
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
        weighting=weights.report.weighting,
        compression=config.compression,
        full_width=full_width(config),
        storage_order=config.storage_order,
    )
    finish = functools.partial(_finished, config=config, weighting=weights)
    jets = merged(files, empty.content_ids, max_bytes=max_bytes, threads=threads, finish=finish)
    with disk.writing(directory):
        manifest = write_jets(jets, empty, directory, threads=threads)
        weights.report.write(directory, weights.weights)
        return publish(manifest, histogram, directory)


def _open_staged(staged: Sequence[Path], schema: Schema, config: Config, seed: int) -> list[StagedFile]:
    _allow_open_files(len(staged))
    files = [StagedFile(Path(path), schema) for path in staged]
    for file in files:
        if (file.record.seed, file.record.config_digest) != (seed, config.dataset_digest):
            raise DatasetMismatchError(
                f"'{file.path}' was staged with another config or seed: remove it and convert again"
            )
    return files


def _skipped(files: Sequence[StagedFile]) -> tuple[SkippedFile, ...]:
    """The source files that were left out, each named once in a warning."""
    skipped = tuple(skip for file in files for skip in file.record.skipped)
    if skipped:
        paths = ", ".join(skip.path for skip in skipped)
        logger.warning("%d files that cannot be read are left out: %s", len(skipped), paths)
    return skipped


def _block_bytes(memory_mb: int, threads: int) -> int:
    """Bytes of the blocks of jets under way: each thread has two and one that waits, writing has up to four."""
    return min(DEFAULT_BYTES, ((check_memory(memory_mb) - BASE_MB) << 20) // (3 * threads + 4))


def _allow_open_files(number: int) -> None:
    """Raise the limit of open files as far as the staged files need it and the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def _account(files: Sequence[StagedFile], sources: Sequence[Source]) -> Accounting:
    total = sum((file.record.accounting for file in files), Accounting())
    skipped = [skip for file in files for skip in file.record.skipped]
    if not sources and skipped:
        raise DataError(f"none of the {len(skipped)} files can be used, the first: {skipped[0].reason}")
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
        file.verify()
        for chunk in range(len(file)):
            histogram += grid.histogram(*file.labels(chunk))
    return histogram


def lost_jets(
    lost: Mapping[str, tuple[int, ...]], histogram: NDArray[np.int64], config: Config, accepted: int
) -> list[str]:
    """A sentence for the columns that cost more than 0.1 % of the jets, with the share of each truth label.

    lost : of a staged record.
    histogram : int64 [K,P,E], accepted jets.
    accepted : jets.
    """
    if not lost:
        return []
    total = accepted + lost[""][-1]
    counts = {name: jets for name, jets in lost.items() if name and jets[-1] > _LOST_SHARE * total}
    if not counts:
        return []
    of_label = histogram.sum(axis=(1, 2)) + np.array(lost[""][:-1])
    texts = []
    for name, jets in sorted(counts.items(), key=lambda item: -item[1][-1])[:_LOST_SHOWN]:
        shares = [(n / max(1, of), label, n, of) for n, label, of in zip(jets, config.labels, of_label, strict=False)]
        shown = ", ".join(f"{label} {n} of {of}" for _, label, n, of in sorted(shares, reverse=True) if n)
        texts.append(f"`{name}` in {jets[-1]} of {total} jets ({shown or 'no label'})")
    more = f"; and {len(counts) - _LOST_SHOWN} columns more" if len(counts) > _LOST_SHOWN else ""
    sentence = (
        f"{lost[''][-1]} jets are left out for numbers that are not finite: {'; '.join(texts)}{more}: say in the "
        "config's `non_finite` what such a number becomes, or leave the column out"
    )
    return [sentence]


def _weigh(histogram: NDArray[np.int64], config: Config, weighting: str, *, is_test_set: bool) -> Weighting:
    """Weights of the jets; what is odd about them is logged."""
    labels, reference = Schema.of(config).truths, config.reference_flavour
    try:
        warnings = check_labels(histogram, labels, reference, config.name)
    except DataError as error:
        if not is_test_set:
            raise
        logger.warning("%s; as a test set the jets are taken all the same, each with weight 1", error)
        most = labels[int(histogram.sum(axis=(1, 2)).argmax())]
        return weigh(histogram, NONE, grid=_grid(config), labels=labels, reference=most)
    weights = weigh(histogram, weighting, grid=_grid(config), labels=labels, reference=reference)
    for warning in (*warnings, *weights.report.warnings()):
        logger.warning("%s", warning)
    return weights


def _finished(block: JetBlock, config: Config, weighting: Weighting) -> JetBlock:
    """The block as it is stored: weights looked up, inputs rounded if the config says so."""
    features, counts = dict(block.features), dict(block.counts)
    if config.data_precision == "float16":
        for name, old in block.counts.items():
            half = np.clip(features[name], -_HALF_LIMIT, _HALF_LIMIT).astype(np.float16).astype(np.float32)
            group = config.group(name)
            for column in group.four_vectors.columns if group.four_vectors else ():
                half[:, group.columns.index(column)] = features[name][:, group.columns.index(column)]
            features[name], counts[name] = strip(half, old)
    weight = weighting.report.grid.look_up(weighting.weights, block.kinematics, block.truth)
    return dataclasses.replace(block, features=features, counts=counts, weight=weight)
