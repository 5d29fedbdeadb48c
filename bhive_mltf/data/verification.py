"""Reading a whole training set to see that it is what its manifest says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.build.set_writer import WEIGHTS, batch_edges, side_file
from bhive_mltf.data.dataset import Dataset
from bhive_mltf.data.index import truth_bits
from bhive_mltf.data.manifest import DatasetDigest, file_checksum
from bhive_mltf.errors import CorruptFileError

Progress = Callable[[int], None]


def silent(_: int) -> None:
    """Progress that nobody looks at."""


def ranges(dataset: Dataset) -> Iterator[tuple[int, int, int]]:
    """(shard, start, stop) of all jets in stored order, block by block as `write_jets` cuts them."""
    edges = dataset.shard_edges.tolist()
    for shard, (low, high) in enumerate(itertools.pairwise(edges)):
        for start, stop in itertools.pairwise(batch_edges(low, high)):
            yield shard, start, stop


def digest_of(dataset: Dataset, progress: Progress = silent) -> str:
    """The digest of a training set, from all of its jets."""
    digest = DatasetDigest(dataset.schema, dataset.content_ids)
    for _, start, stop in ranges(dataset):
        digest.update(dataset.read(start, stop))
        progress(stop - start)
    return digest.hexdigest()


def problems(dataset: Dataset, progress: Progress = silent) -> list[str]:
    """What differs between the files of a set and its manifest and index; empty when nothing does.

    Reads every byte: checksums of all files, every jet against its row of the index, the digest.

    Parameters
    ----------
    progress : called with the number of jets read since the last call.
    """
    found = _files(dataset)
    found += _accounts(dataset)
    digest = DatasetDigest(dataset.schema, dataset.content_ids)
    unreadable = False
    for shard, start, stop in ranges(dataset):
        first = int(dataset.shard_edges[shard])
        rows = f"jets {start - first} to {stop - first - 1}"
        try:
            block = dataset.read(start, stop)
        except CorruptFileError as error:
            found.append(f"{rows}: {error}")
            unreadable = True
        else:
            digest.update(block)
            if wrong := _other_than_index(dataset, start, block):
                found.append(f"{rows} of '{dataset.path(shard)}' differ from the index in {', '.join(wrong)}")
        progress(stop - start)
    if not unreadable and digest.hexdigest() != dataset.manifest.digest:
        found.append(f"the digest of the jets is {digest.hexdigest()}, the manifest says {dataset.manifest.digest}")
    return found


def _files(dataset: Dataset) -> list[str]:
    found = [damage for name in dataset.manifest.files if (damage := dataset.side_damage(name))]
    for number, shard in enumerate(dataset.manifest.shards):
        path = dataset.path(number)
        try:
            if file_checksum(path) != shard.checksum:
                found.append(f"the content of '{path}' has changed since it was written")
        except CorruptFileError as error:
            found.append(str(error))
    return found


def _accounts(dataset: Dataset) -> list[str]:
    """Numbers that are written down twice."""
    manifest, found = dataset.manifest, []
    if not manifest.accounting.balanced or manifest.accounting.accepted != manifest.n_jets:
        found.append(f"the accounting does not add up: {manifest.accounting}, {manifest.n_jets} jets stored")
    accepted = [source.accepted for source in manifest.sources]
    if np.bincount(dataset.index.file, minlength=len(accepted)).tolist() != accepted:
        found.append("the index has other numbers of jets per source file than the manifest")
    path = side_file(WEIGHTS, dataset.directory)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["chunk_size"] if path else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [*found, f"'{path}' cannot be read ({error!r})"]
    # Older upstream sets have one number for all shards.
    if len(rows) > 1 and rows != [shard.rows for shard in manifest.shards]:
        found.append(f"'{path}' has other numbers of jets per shard than the manifest")
    return found


def _other_than_index(dataset: Dataset, start: int, block: JetBlock) -> list[str]:
    index = dataset.index[start : start + len(block)]
    columns: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        "id": (index.ids(), block.jet_id),
        "weight": (index.weight, block.weight),
        "process": (index.process, block.process),
        "truth": (index.truth_bits, truth_bits(block.truth)),
        **{f"number of {name}": (index.counts(name), counts) for name, counts in block.counts.items()},
    }
    return [name for name, (expected, actual) in columns.items() if not np.array_equal(expected, actual)]
