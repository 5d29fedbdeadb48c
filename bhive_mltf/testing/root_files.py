"""Writing toy jets to ROOT files whose bytes depend on their content only."""

from __future__ import annotations

import hashlib
import unittest.mock
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

from bhive_mltf import compat

_DATE_CODE = 0x6000_0000


@dataclass(frozen=True)
class Jets:
    """Toy jets as columns.

    scalars : branch -> one number per jet, [J].
    lists : counter branch -> (candidates per jet [J], {branch -> flat values [S]}).
    """

    scalars: Mapping[str, NDArray[Any]]
    lists: Mapping[str, tuple[NDArray[np.int64], Mapping[str, NDArray[Any]]]]

    def __len__(self) -> int:
        return len(next(iter(self.scalars.values())))


def write_tree(path: str | Path, treename: str, jets: Jets, *, basket_jets: int = 1_000) -> Path:
    """Write jets to the tree `treename` of a new file; lists have counter branches. DataError with uproot below 5.

    uproot cannot write `std::vector` branches, so JetClass files of the toys are jagged arrays with a counter too.
    """
    path = Path(path)
    compat.require_root_reader(str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = dict(jets.scalars)
    counters = {}
    for counter, (counts, values) in jets.lists.items():
        # Each list is a record of its own without a name in front of its fields, so branches keep their names.
        columns[f"list_{counter}"] = ak.unflatten(ak.zip(dict(values)), counts)
        counters[f"list_{counter}"] = counter
    types = {
        name: value.dtype if isinstance(value, np.ndarray) else value.type.content for name, value in columns.items()
    }
    identity = uuid.UUID(bytes=hashlib.sha256(path.name.encode()).digest()[:16])
    # uproot stamps the time into the file.
    with (
        unittest.mock.patch("uproot._util.datetime_to_code", return_value=_DATE_CODE),
        uproot.recreate(path, compression=uproot.ZLIB(1), uuid_function=lambda: identity) as file,
    ):
        tree = file.mktree(
            treename,
            types,
            counter_name=lambda counted: counters[counted],
            field_name=lambda outer, inner: inner if outer in counters else f"{outer}_{inner}",
        )
        for start in range(0, len(jets), basket_jets):
            tree.extend({name: value[start : start + basket_jets] for name, value in columns.items()})
    return path
