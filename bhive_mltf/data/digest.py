"""The digest of a training set: what its jets are, whatever the layout, the shards and the paths."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.schema import Schema


class DatasetDigest:
    """Collects the digest over the jets in stored order, block by block of any size.

    Parameters
    ----------
    schema : what the set holds; part of the digest.
    content_ids : uint64, content id of each source file of the manifest.
    """

    def __init__(self, schema: Schema, content_ids: NDArray[np.uint64]) -> None:
        self._schema = schema
        self._content_ids = content_ids
        self._columns: dict[str, xxhash.xxh3_128] = {}

    def update(self, block: JetBlock) -> None:
        """Add the jets of `block`."""
        for name, values in block.features.items():
            self._add(f"features/{name}", values, "<f4")
        for name, counts in block.counts.items():
            self._add(f"counts/{name}", counts, "<i4")
        self._add("truth", block.truth, "u1")
        self._add("process", block.process, "<i2")
        self._add("weight", block.weight, "<f4")
        self._add("kinematics", block.kinematics, "<f4")
        self._add("content_id", self._content_ids[block.jet_id[:, 0]], "<u8")
        self._add("entry", block.jet_id[:, 1], "<i8")

    def _add(self, name: str, values: NDArray[Any], kind: str) -> None:
        column = self._columns.setdefault(name, xxhash.xxh3_128())
        column.update(np.ascontiguousarray(values, kind).data)

    def hexdigest(self) -> str:
        """SHA-256 over schema and columns, 64 hexadecimal digits."""
        columns = {name: column.hexdigest() for name, column in self._columns.items()}
        text = json.dumps({"schema": dataclasses.asdict(self._schema), "columns": columns}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
