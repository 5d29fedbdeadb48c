"""What split, plan and loader need of a training set, whatever its layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.schema import Schema

if TYPE_CHECKING:
    from bhive_mltf.data.layouts.arrow_reader import ArrowShard

Integers = NDArray[np.integer[Any]]


class ManifestLike(Protocol):
    """The one entry of a manifest that matters here."""

    @property
    def derived(self) -> bool:
        """True for a foreign LZ4 set, whose jets were not permuted globally."""


class JetIndexLike(Protocol):
    """One row per jet, in stored order; arrays of shape [J], memory-mapped or not."""

    @property
    def file(self) -> Integers:
        """Index of the source file in the manifest."""

    @property
    def entry(self) -> Integers:
        """Entry in the tree of the source file."""

    @property
    def weight(self) -> NDArray[np.floating[Any]]:
        """Probability in [0, 1] of weighted sampling."""

    @property
    def process(self) -> Integers:
        """Index into the processes of the schema."""

    @property
    def truth_bits(self) -> NDArray[np.uint64]:
        """Bit k: the jet has truth label k."""

    def counts(self, group: str) -> Integers:
        """Candidates per jet of a candidate group."""


class JetSource(Protocol):
    """A training set that is open for reading; picklable, so that loader workers can have it."""

    @property
    def schema(self) -> Schema:
        """Groups, truth labels and processes."""

    @property
    def manifest(self) -> ManifestLike:
        """Where the jets come from."""

    @property
    def index(self) -> JetIndexLike:
        """The small columns of all jets."""

    @property
    def content_ids(self) -> NDArray[np.uint64]:
        """Content id per source file."""

    @property
    def shard_edges(self) -> NDArray[np.int64]:
        """First jet of each shard and, last, the number of jets."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int, columns: Mapping[str, Sequence[str]] | None = None) -> JetBlock:
        """The jets `start` to `stop` in stored order, with just these columns per group."""


@runtime_checkable
class ArrowSource(Protocol):
    """A training set in Arrow shards."""

    def arrow_shard(self, number: int) -> ArrowShard | None:
        """A shard; None if it is of another layout."""


@runtime_checkable
class MappingSource(Protocol):
    """A training set that maps its files into memory."""

    def forget_pages(self) -> None:
        """Give back what is mapped; it comes again when it is read again."""

    def populate_index(self, runs: Sequence[range]) -> None:
        """Have the index rows of these stored jets read, so that a bad block is an error before they are touched."""
