"""One reader of training sets, whatever their layout."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.config import Config, as_recorded
from bhive_mltf.data import manifest as manifests
from bhive_mltf.data.block import JetBlock, empty_block
from bhive_mltf.data.build.set_writer import BLOCK_CHECKS, FILES, HISTOGRAM, INDEX, SEEK_POINTS, WEIGHTS, side_file
from bhive_mltf.data.index import JetIndex
from bhive_mltf.data.layouts.arrow_reader import ArrowShard
from bhive_mltf.data.layouts.lz4_rows import LZ4Shard
from bhive_mltf.data.layouts.upstream_lz4 import derive
from bhive_mltf.data.manifest import Manifest, file_checksum
from bhive_mltf.data.schema import Schema, choose_columns
from bhive_mltf.errors import CorruptFileError, DataError, DatasetMismatchError
from bhive_mltf.files import mapping
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.files.text import read_text

_REBUILD = "build the training set again"


class Dataset:
    """A training set, memory-mapped.

    Cheap to pickle: a copy, in whatever process, opens its files when it first reads. Threads may read at the same
    time.

    directory : where the shards lie.
    manifest : what the set is.
    index : one row per jet, in stored order.
    """

    def __init__(self, directory: Path, manifest: Manifest, derived_in: Path | None = None) -> None:
        self.directory = directory
        self.manifest = manifest
        self._side = derived_in or directory
        self._readers: dict[int, ArrowShard | LZ4Shard] = {}
        self._last_read = -1
        self.index = JetIndex(self._side / INDEX)

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "manifest": self.manifest, "derived_in": self._side}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        return self.manifest.n_jets

    @property
    def schema(self) -> Schema:
        """Groups, truth labels and processes."""
        return self.manifest.schema

    @cached_property
    def histogram(self) -> NDArray[np.float32]:
        """Jets per truth label and bin in pt and eta, [K, npt, neta]."""
        try:
            histogram: NDArray[np.float32] = np.load(self.directory / HISTOGRAM)
        except (OSError, ValueError, EOFError) as error:
            raise CorruptFileError(f"'{self.directory / HISTOGRAM}' cannot be read ({error}): {_REBUILD}") from error
        return histogram

    @cached_property
    def content_ids(self) -> NDArray[np.uint64]:
        """Content ids of the source files, uint64 [n_sources]."""
        return self.manifest.content_ids

    @cached_property
    def shard_edges(self) -> NDArray[np.int64]:
        """Position of each shard's first jet, and the number of jets; int64 [n_shards + 1]."""
        return np.cumsum([0, *(shard.rows for shard in self.manifest.shards)], dtype=np.int64)

    def read(self, start: int, stop: int, columns: Mapping[str, Sequence[str]] | None = None) -> JetBlock:
        """The jets at positions [start, stop) of the stored order.

        Parameters
        ----------
        columns : per group the columns wanted, in the order wanted; groups not named are left out. None: everything.

        Raises
        ------
        IndexError
            The range lies outside the set.
        DataError
            No such group or column; a shard is damaged.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"jets {start} to {stop} of {len(self)}")
        choice = choose_columns(self.schema, columns)
        if start == stop:
            return empty_block(self.schema).choose(choice)
        edges = self.shard_edges
        first = int(np.searchsorted(edges, start, side="right")) - 1
        last = int(np.searchsorted(edges, stop, side="left"))
        pieces = []
        for shard in range(first, last):
            if shard != self._last_read:
                # what a shard keeps in memory is for the next jets of the same one
                if self._last_read in self._readers:
                    self._readers[self._last_read].forget_pages()
                self._last_read = shard
            low, high = int(edges[shard]), int(edges[shard + 1])
            rows = max(start, low) - low, min(stop, high) - low
            pieces.append(self._reader(shard).read(*rows, choice))
        block = JetBlock.concatenate(pieces)
        if self.manifest.layout == "LZ4Dataset":
            block = dataclasses.replace(block, jet_id=self.index[start:stop].ids())
        return block

    def arrow_shard(self, number: int) -> ArrowShard | None:
        """A shard of the Arrow layout; None in another one."""
        reader = self._reader(number)
        return reader if isinstance(reader, ArrowShard) else None

    def forget_pages(self) -> None:
        """Give back what is mapped of the shards; it comes again when it is read again."""
        for reader in list(self._readers.values()):
            reader.forget_pages()

    def populate_index(self, runs: Sequence[range]) -> None:
        """Have the index rows of these stored jets read, so that a bad block is an error before they are touched.

        Raises
        ------
        CorruptFileError, DiskError
            They cannot be read any more.
        """
        for run in runs:
            self.index.populate(run)

    def path(self, shard: int) -> Path:
        """Path of a shard."""
        return self.directory / self.manifest.shards[shard].file

    def _reader(self, shard: int) -> ArrowShard | LZ4Shard:
        # Opening a shard twice in two threads is harmless: it is only a map.
        reader = self._readers.get(shard)
        if reader is None:
            reader = self._readers[shard] = self._open(shard)
        return reader

    def _open(self, shard: int) -> ArrowShard | LZ4Shard:
        path = self.path(shard)
        if self.manifest.layout == "ArrowDataset":
            reader = ArrowShard(path, self.schema)
            rows = self.manifest.shards[shard].rows
            if reader.edges[-1] != rows:
                raise CorruptFileError(f"'{path}' holds {reader.edges[-1]} jets, {rows} are recorded: {_REBUILD}")
            return reader
        points, checks = (self._side_array(name.format(shard)) for name in (SEEK_POINTS, BLOCK_CHECKS))
        return LZ4Shard(path, self.schema, self.manifest.precision, points, checks)

    def _side_array(self, name: str) -> NDArray[np.void] | None:
        """A file of an LZ4 shard, checked; None if the set has none."""
        path = side_file(name, self._side)
        if path is None and name not in self.manifest.files:
            return None
        if damage := self.side_damage(name):
            raise CorruptFileError(f"{damage}: {_REBUILD}")
        try:
            # small, and read whenever the shard is: in memory
            found: NDArray[np.void] = np.load(io.BytesIO((self._side / name).read_bytes()))
        except (OSError, ValueError, EOFError) as error:
            raise mapping.cannot_read(self._side / name, error, _REBUILD) from error
        return found

    def side_damage(self, name: str) -> str | None:
        """What is wrong with a file beside the shards, by its recorded checksum; None if nothing is known to be."""
        recorded = self.manifest.files.get(name)
        path = side_file(name, self._side, self.directory)
        if path is None:
            return f"'{self.directory / name}' is missing" if recorded else None
        if recorded is not None and (path.stat().st_size == 0 or file_checksum(path) != recorded):
            return f"'{path}' has changed since the training set was made"
        return None


def open_dataset(
    directory: str | Path, config: Config, sidecar: Path | None = None, *, any_reference: bool = False
) -> Dataset:
    """Open a training set and check that it is whole and the config's.

    An LZ4 dataset of upstream, which has no manifest, gets one here: in its directory, or in `sidecar` when that
    cannot be written.

    Parameters
    ----------
    sidecar : where derived files go when `directory` is read-only.
    any_reference : the set may have been made for another reference flavour, which decides its weights only: for jets
        that are only evaluated.

    Raises
    ------
    DataError
        No training set there, or not a complete one.
    DatasetMismatchError
        It was made with another config.
    CorruptFileError
        A shard is missing or has another size; the manifest or the index is damaged.
    """
    directory = Path(directory)
    shards = _processed_files(directory)
    found = next((side for side in (directory, sidecar) if side and (side / manifests.FILE_NAME).exists()), None)
    if found is None:
        return _derived(directory, shards, config, sidecar)
    dataset = Dataset(directory, Manifest.read(found), found)
    manifest = dataset.manifest
    same_config = as_recorded(config, manifest.config_digest) is not None
    if any_reference and not same_config:
        others = (config.model_copy(update={"reference_flavour": label}) for label in ("", *config.labels))
        same_config = any(as_recorded(other, manifest.config_digest) for other in others)
    if manifest.derived and manifest.layout == "LZ4Dataset" and not (same_config and _damage(dataset, shards) is None):
        return _derived(directory, shards, config, sidecar)
    if not same_config:
        raise DatasetMismatchError(
            f"'{directory}' was made with config {manifest.config_name}, not with {config.name} as it is now: use the "
            "config that it was made with, or another --dataset-version"
        )
    if damage := _damage(dataset, shards):
        raise CorruptFileError(f"{damage}: {_REBUILD}")
    return dataset


def open_recorded(directory: str | Path) -> Dataset:
    """Open a training set that has a manifest, without its config, and check that it is whole.

    Raises
    ------
    DataError
        No training set there, or none with a manifest.
    CorruptFileError
        As `open_dataset`.
    """
    directory = Path(directory)
    shards = _processed_files(directory)
    if not (directory / manifests.FILE_NAME).exists():
        raise DataError(
            f"'{directory}' has no {manifests.FILE_NAME}, like the datasets of upstream: derive one with "
            f"bhive-mltf dataset convert {directory} --in-place --config NAME"
        )
    dataset = Dataset(directory, Manifest.read(directory))
    if damage := _damage(dataset, shards):
        raise CorruptFileError(f"{damage}: {_REBUILD}")
    return dataset


def verify(dataset: Dataset) -> None:
    """Compare every shard with its recorded checksum; CorruptFileError for the first that differs."""
    for number, shard in enumerate(dataset.manifest.shards):
        path = dataset.path(number)
        if file_checksum(path) != shard.checksum:
            raise CorruptFileError(f"the content of '{path}' has changed since it was written: {_REBUILD}")


def _processed_files(directory: Path) -> list[str]:
    """Shards by their names in `directory`; by their full paths where they are not there."""
    path = directory / FILES
    if not path.exists():
        raise DataError(f"'{directory}' holds no complete training set (no {FILES}): run DatasetConstructorTask")
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"'{path}' cannot be read ({error}): {_REBUILD}") from error
    listed = [line.strip() for line in text.splitlines() if line.strip()]
    if not listed:
        raise CorruptFileError(f"'{path}' names no shard: {_REBUILD}")
    # A directory may have been moved: the names count, not the paths of then.
    return [Path(line).name if (directory / Path(line).name).exists() else line for line in listed]


def _damage(dataset: Dataset, shards: list[str]) -> str | None:
    """What is wrong with the files of a set, or None."""
    manifest = dataset.manifest
    recorded = [shard.file for shard in manifest.shards]
    if recorded != shards:
        missing = sorted(set(recorded) - set(shards)) or sorted(set(shards) - set(recorded))
        what = f"other shards ({', '.join(missing[:3])})" if missing else "the shards in another order"
        return f"{FILES} and {manifests.FILE_NAME} of '{dataset.directory}' name {what}"
    for number, shard in enumerate(manifest.shards):
        path = dataset.path(number)
        size = path.stat().st_size if path.exists() else 0
        if size != shard.bytes:
            return f"the shard '{path}' has {size} bytes, {shard.bytes} are recorded"
    if len(dataset.index) != manifest.n_jets or sum(shard.rows for shard in manifest.shards) != manifest.n_jets:
        return f"the index '{dataset.directory / INDEX}' has {len(dataset.index)} jets, {manifest.n_jets} are recorded"
    return next(filter(None, map(dataset.side_damage, (INDEX, HISTOGRAM, WEIGHTS))), None)


def _derived(directory: Path, shards: list[str], config: Config, sidecar: Path | None) -> Dataset:
    """Derive what an upstream dataset lacks."""
    for shard in shards:
        if shard.endswith(".npz"):
            raise DataError(
                f"'{directory / shard}' is of upstream's NumPy layout, which is not read; layouts: "
                f"{', '.join(get_args(manifests.Layout))}: {_REBUILD}"
            )
        if not shard.endswith(".lz4"):
            raise DataError(
                f"'{directory}' has no {manifests.FILE_NAME}, and '{shard}' is not of upstream's LZ4 layout: {_REBUILD}"
            )
        if not (directory / shard).exists():
            raise CorruptFileError(f"the shard '{shard}' of '{directory}' is missing: restore it")
    side = directory if _writable(directory) else sidecar
    if side is None:
        raise DataError(f"'{directory}' has no {manifests.FILE_NAME}, and none can be written there: copy the dataset")
    with DirectoryLock(side, wait_s=None):
        # Another process may have derived it while this one waited.
        if (side / manifests.FILE_NAME).exists():
            found = Dataset(directory, Manifest.read(side), side)
            same_config = as_recorded(config, found.manifest.config_digest) is not None
            if same_config and _damage(found, shards) is None:
                return found
        return Dataset(directory, derive(config, directory, shards, side), side)


def _writable(directory: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


FILE_AND_ENTRY, SHARD_AND_ROW = "file and entry", "shard and row"


def describe_files(dataset: Dataset) -> dict[str, Any]:
    """What jet ids mean, and path and content id of each index: plain JSON values."""
    manifest = dataset.manifest
    if manifest.jet_ids:
        files = [(source.path, source.content_id) for source in manifest.sources]
    else:
        files = [(shard.file, shard.checksum) for shard in manifest.shards]
    return {
        "jet_id": FILE_AND_ENTRY if manifest.jet_ids else SHARD_AND_ROW,
        "files": {str(i): {"path": str(path), "content_id": str(content)} for i, (path, content) in enumerate(files)},
    }
