"""What a config holds, as frozen objects."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field

from bhive_mltf.config.expressions.expression import Expression
from bhive_mltf.config.four_vectors import FourVectors
from bhive_mltf.config.truths import Frozen, Truth

GroupName = Literal["global", "cpf", "npf", "vtx", "lt"]
Layout = Literal["ArrowDataset", "LZ4Dataset"]
Processor = Literal["LZ4Processing", "PFCandidateAndVertexProcessing"]
Precision = Literal["float32", "float16"]
Compression = Literal["none", "lz4", "zstd"]
# Part of every digest: raise it when the meaning of a config changes.
DIGEST_FORMAT = 1


class CustomFeature(Frozen):
    """A column computed from branches."""

    name: str
    expression: str

    def parse(self, where: str = "") -> Expression:
        """The expression, ready to evaluate."""
        return Expression.parse(self.expression, where or f"custom feature {self.name}")


class ProcessCuts(Frozen):
    """Jets of one process that figures show; GeV, None: no cut."""

    pt_min: float | None = None
    pt_max: float | None = None
    eta_min: float | None = None
    eta_max: float | None = None


class Group(Frozen):
    """Columns of the jet (`global`) or of one kind of candidate.

    plain : branches, in order; `custom` columns follow them.
    length : candidates kept per jet; 1 for `global`.
    four_vectors : None when there are none or when the names do not tell; `four_vectors_problem` says why.
    """

    name: GroupName
    plain: tuple[str, ...]
    custom: tuple[CustomFeature, ...] = ()
    length: int
    four_vectors: FourVectors | None = None
    four_vectors_problem: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Plain, then custom columns: the order on disk."""
        return self.plain + tuple(feature.name for feature in self.custom)

    @property
    def branches(self) -> tuple[str, ...]:
        """Branches to read for the columns, each once; names of custom features are none."""
        names = list(self.plain)
        for feature in self.custom:
            names += sorted(feature.parse().names)
        custom = {feature.name for feature in self.custom}
        # A custom feature may be called like a branch of the file only when nothing of its group reads that name.
        return tuple(name for name in dict.fromkeys(names) if name not in custom)

    def digest_content(self) -> dict[str, Any]:
        """What of the group decides the content of a training set."""
        return {
            "name": self.name,
            "plain": self.plain,
            "custom": [(feature.name, feature.parse().canonical) for feature in self.custom],
            "length": self.length,
        }


class Config(Frozen):
    """A B-Hive config file, merged with its `default.yml` and checked.

    name : stem of the file; part of output paths.
    source : path of the file.
    bins_pt, bins_eta : edges of the weighting grid (GeV; pseudorapidity); the outer ones are the acceptance.
    processes : names looked for in file paths, `default` alone: all files are one process.
    groups : in the order global, cpf, npf, vtx, lt; those without columns left out.
    truths : labels in order of storage.
    reference_flavour : label whose shape in pt and eta the weights aim at; empty when the config names none.
    data_precision : of network inputs on disk; four-vectors, kinematics, labels and weights keep their width.
    compression : codec of Arrow shards.
    storage_order : per group the columns that Arrow shards keep together, in the order in which a model reads them.
    non_finite : column -> what NaN, infinity and what is too large for float32 become; the jets of other columns that
        hold such a number are left out.
    warnings : what was odd but harmless, one sentence each, to be logged by the caller of `load`.
    known_as : `dataset_digest` under which an earlier version recorded this content, see `former.as_recorded`.
    """

    name: str
    source: str
    treename: str
    bins_pt: tuple[float, ...]
    bins_eta: tuple[float, ...]
    processes: tuple[str, ...]
    process_cuts: dict[str, ProcessCuts]
    process_weights: dict[str, float]
    groups: tuple[Group, ...]
    truths: tuple[Truth, ...]
    reference_flavour: str
    pt_key: str
    eta_key: str
    processor: Processor
    dataset: Layout
    data_precision: Precision
    compression: Compression = "none"
    storage_order: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    non_finite: dict[str, float] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    known_as: str = ""

    def group(self, name: str) -> Group:
        """The group called `name`; KeyError if it has no columns."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def labels(self) -> tuple[str, ...]:
        """Truth labels in order."""
        return tuple(truth.label for truth in self.truths)

    @property
    def branches(self) -> tuple[str, ...]:
        """All branches that a conversion reads, each once."""
        names = [name for group in self.groups for name in group.branches]
        names += [branch for truth in self.truths for branch in truth.branches]
        if self.groups:
            names += [self.pt_key, self.eta_key]
        return tuple(dict.fromkeys(names))

    @property
    def dataset_digest(self) -> str:
        """SHA-256 of what decides the content of a training set."""
        return self.known_as or _digest(self._dataset_content())

    @property
    def written_digest(self) -> str:
        """The same as earlier versions had it, to which the order of conditions mattered."""
        truths = [truth.model_dump(mode="json") for truth in self.truths]
        return _digest({**self._dataset_content(), "truths": truths})

    @property
    def digest(self) -> str:
        """SHA-256 of all settings; the name and the path of the file do not matter."""
        return _digest(self._all_content())

    def _dataset_content(self) -> dict[str, Any]:
        """What decides the content of a training set: not the figures' cuts, sampling weights, or layout on disk."""
        content: dict[str, Any] = {
            "format": DIGEST_FORMAT,
            "treename": self.treename,
            "bins_pt": self.bins_pt,
            "bins_eta": self.bins_eta,
            "processes": self.processes,
            "groups": [group.digest_content() for group in self.groups],
            "truths": [truth.meaning() for truth in self.truths],
            "reference_flavour": self.reference_flavour,
            "pt_key": self.pt_key,
            "eta_key": self.eta_key,
            "data_precision": self.data_precision,
        }
        if self.data_precision == "float16":
            # Four-vectors are not narrowed, so that which columns they are decides the content.
            content["full_width"] = {g.name: g.four_vectors.columns for g in self.groups if g.four_vectors}
        if self.non_finite:  # younger than the digests of existing sets, which stay as they are
            content["non_finite"] = self.non_finite
        return content

    def _all_content(self) -> dict[str, Any]:
        four_vectors = {g.name: g.four_vectors.model_dump(mode="json") for g in self.groups if g.four_vectors}
        return {
            **self._dataset_content(),
            "four_vectors": four_vectors,
            "process_cuts": {name: cuts.model_dump() for name, cuts in self.process_cuts.items()},
            "process_weights": self.process_weights,
            "processor": self.processor,
            "dataset": self.dataset,
            # Younger than the digests of existing runs, which stay as they are.
            **({"compression": self.compression} if self.compression != "none" else {}),
            **({"storage_order": self.storage_order} if self.storage_order else {}),
        }


def _digest(content: dict[str, Any]) -> str:
    """Hex SHA-256 of canonical JSON: what is equal in meaning has the same digest, whatever the file looks like."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
