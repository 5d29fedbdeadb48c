"""A training set in memory: stands in for an open dataset directory.

The value of a candidate says which jet, candidate and column it is: see `value`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.loader import order
from bhive_mltf.data.schema import GLOBAL, GroupSchema, Schema
from bhive_mltf.errors import CorruptFileError
from bhive_mltf.interface import GroupInput, ModelInputs, Padding

SCHEMA = Schema(
    groups=(
        GroupSchema(GLOBAL, ("jet_pt", "jet_eta", "n"), 1),
        GroupSchema("cpf", ("px", "py", "pz", "e", "d0"), 6),
        GroupSchema("vtx", ("mass",), 3),
    ),
    truths=("isB", "isBB", "isC", "isL", "isTau"),
    processes=("QCD", "TTBar"),
)
CLASSES = (("b", ("isB", "isBB")), ("c", ("isC",)), ("l", ("isL",)))


def inputs(padding: Padding = "longest", cpf: int = 6, classes=CLASSES) -> ModelInputs:
    """A model's inputs: columns in another order than stored, four-vectors that overlap them."""
    return ModelInputs(
        classes=classes,
        groups=(
            GroupInput(GLOBAL, ("n", "jet_pt"), 1),
            GroupInput("cpf", ("d0", "e", "px"), cpf, ("px", "py", "pz", "e"), "pxpypze"),
            GroupInput("vtx", ("mass",), 3),
        ),
        padding=padding,
    )


def value(position, candidate, column):
    """The stored value, exact in float32 for a few hundred thousand jets."""
    return 40.0 * position + 5.0 * candidate + column + 1.0


@dataclass(frozen=True)
class MemoryManifest:
    derived: bool = False


@dataclass(frozen=True)
class MemoryIndex:
    file: NDArray[np.uint32]
    entry: NDArray[np.int64]
    weight: NDArray[np.float32]
    process: NDArray[np.int16]
    truth_bits: NDArray[np.uint64]
    n: Mapping[str, NDArray[np.uint16]]

    def counts(self, group: str) -> NDArray[np.uint16]:
        return self.n[group]

    def ids(self) -> NDArray[np.int64]:
        return np.stack([self.file.astype(np.int64), self.entry], axis=1)


@dataclass
class MemoryDataset:
    block: JetBlock
    index: MemoryIndex
    content_ids: NDArray[np.uint64]
    shard_edges: NDArray[np.int64]
    manifest: MemoryManifest = MemoryManifest()
    schema: Schema = SCHEMA
    corrupt: bool = False
    reads: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.block)

    @property
    def histogram(self) -> NDArray[np.float32]:
        return self.block.truth.sum(axis=0).astype(np.float32).reshape(-1, 1, 1)

    def read(self, start: int, stop: int, columns: Mapping[str, Sequence[str]] | None = None) -> JetBlock:
        if self.corrupt:
            raise CorruptFileError(f"shard_0.arrow is damaged at jet {start}: construct the training set again")
        assert 0 <= start < stop <= len(self)
        self.reads.append((start, stop))
        block = self.block.take(np.arange(start, stop))
        if columns is None:
            return block
        chosen = {}
        for name, wanted in columns.items():
            stored = self.schema.group(name).columns
            chosen[name] = block.features[name][:, [stored.index(c) for c in wanted]]
        counts = {name: n for name, n in block.counts.items() if name in columns}
        return JetBlock(chosen, counts, block.truth, block.process, block.weight, block.jet_id, block.kinematics)

    def arrow_shard(self, number: int) -> None:
        """None: nothing is stored in shards of Arrow."""

    def forget_pages(self) -> None:
        """Nothing is mapped."""

    def populate_index(self, runs: Sequence[range]) -> None:
        """The index is in memory."""


def make_dataset(
    n_jets: int, *, seed: int = 1, labels: Sequence[int] | None = (0, 2, 3), edges=None, derived: bool = False
) -> MemoryDataset:
    """Jets with labels among `labels` (bits of SCHEMA.truths), ids of three files, random counts."""
    rng = np.random.default_rng(seed)
    position = np.arange(n_jets)
    jet_id = np.stack([position % 3, rng.permutation(n_jets)], axis=1).astype(np.int64)
    label = rng.choice(np.array(labels), n_jets)
    truth = np.zeros((n_jets, len(SCHEMA.truths)), np.bool_)
    truth[position, label] = True
    features, counts = {}, {}
    for group in SCHEMA.groups:
        n = np.ones(n_jets, np.int32) if group.name == GLOBAL else _counts(rng, n_jets, group.length)
        jet = np.repeat(position, n)
        candidate = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        columns = np.arange(len(group.columns))
        features[group.name] = value(jet[:, None], candidate[:, None], columns).astype(np.float32)
        if group.name != GLOBAL:
            counts[group.name] = n
    block = JetBlock(
        features=features,
        counts=counts,
        truth=truth,
        process=rng.integers(0, 2, n_jets).astype(np.int16),
        weight=rng.choice(np.array([0.0, 0.25, 0.5, 1.0], np.float32), n_jets),
        jet_id=jet_id,
        kinematics=rng.uniform(0, 1, (n_jets, 2)).astype(np.float32),
    )
    index = MemoryIndex(
        file=jet_id[:, 0].astype(np.uint32),
        entry=jet_id[:, 1],
        weight=block.weight,
        process=block.process,
        truth_bits=(np.uint64(1) << label.astype(np.uint64)),
        n={name: n.astype(np.uint16) for name, n in counts.items()},
    )
    content = order.random_bits(7, np.zeros(3, np.uint64), np.arange(3, dtype=np.uint64))
    edges = np.array(edges if edges is not None else [0, n_jets // 3, n_jets // 2, n_jets], np.int64)
    return MemoryDataset(block, index, content, edges, MemoryManifest(derived))


def _counts(rng, n_jets: int, length: int) -> NDArray[np.int32]:
    return np.minimum(rng.geometric(0.4, n_jets) - 1, length).astype(np.int32)
