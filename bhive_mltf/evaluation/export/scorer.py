"""Scores of the jets of ROOT files by an exported model: needs numpy, uproot and onnxruntime only.

A copy of this file lies beside each exported model. `preprocess.json` says how branches become inputs; the steps are
those of the training set:

1. per group, the first `length` candidates of the jet, in the order of the file; columns in float32; numbers that are
   not finite become what `non_finite` names; custom columns are computed from the columns before them;
2. candidates at the end of a jet whose columns are all zero are padding; the model sees the first `slots` of what is
   left, and zeros in slots without a candidate;
3. a jet with a number that is still not finite has no scores: NaN.

Axes: J jets, S candidates of all of them, N slots, F columns, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bhive_mltf.config.expressions.nodes import Call, Name, Node, Number, evaluate

CHUNK = 2048  # jets


class Scorer:
    """An exported model.

    folder : holds `model.onnx` and `preprocess.json`.
    description : the content of `preprocess.json`.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        import onnxruntime

        self.folder = Path(folder)
        self.description: dict[str, Any] = json.loads((self.folder / "preprocess.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = str(self.folder / self.description["file"])
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @property
    def outputs(self) -> list[str]:
        """Names of the columns of `score`: classes, then regression outputs."""
        return [*self.description["classes"], *self.description["regression"]]

    def score(self, path: str | Path, start: int = 0, stop: int | None = None) -> np.ndarray:
        """float32 [J, C + regression]: of the jets [start, stop) of a file, in the order of their entries."""
        found = [self.run(arrays, finite) for arrays, finite in self.read(path, start, stop)]
        return np.concatenate(found) if found else np.zeros((0, len(self.outputs)), np.float32)

    def run(self, arrays: Mapping[str, np.ndarray], finite: np.ndarray) -> np.ndarray:
        """Scores of inputs as `read` gives them; NaN for jets that are not finite."""
        wanted = {port.name: arrays[port.name] for port in self._session.get_inputs()}
        found = np.concatenate(self._session.run(None, wanted), axis=1)
        found[~finite] = np.nan
        return np.asarray(found)

    def read(
        self, path: str | Path, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Inputs of chunks of jets: arrays by the names of the model's inputs, and which jets are finite [J]."""
        import uproot

        with uproot.open(f"{path}:{self.description['tree']}") as tree:
            branches = sorted({name for group in self.description["groups"] for name in group["branches"]})
            stop = tree.num_entries if stop is None else min(stop, tree.num_entries)
            steps = tree.iterate(branches, step_size=CHUNK, entry_start=start, entry_stop=stop, library="ak", how=dict)
            for arrays in steps:
                columns = {name: _flat(array) for name, array in arrays.items()}
                yield self.inputs(columns)

    def inputs(
        self, columns: Mapping[str, tuple[np.ndarray, np.ndarray | None]]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Inputs from branches: flat values and, of a list per jet, the numbers of candidates [J]."""
        n_jets = min(len(values if counts is None else counts) for values, counts in columns.values())
        finite = np.ones(n_jets, bool)
        found: dict[str, np.ndarray] = {}
        for group in self.description["groups"]:
            values, counts = _group(group, columns, n_jets, self.description["non_finite"])
            bad = ~np.isfinite(values).all(axis=1)
            finite[np.repeat(np.arange(n_jets), counts)[bad]] = False
            values[bad] = 0
            values, counts = _without_padding(values, counts, group)
            for port in group["inputs"]:
                if port["what"] == "n":
                    found[port["name"]] = counts
                else:
                    found[port["name"]] = _padded(values[:, port["positions"]], counts, group)
        return found, finite


def _flat(array: Any) -> tuple[np.ndarray, np.ndarray | None]:  # noqa: ANN401 - an awkward array
    layout = array.layout
    if array.ndim == 1:
        return np.asarray(layout.data), None
    layout = layout.to_ListOffsetArray64(True)
    offsets = np.asarray(layout.offsets.data)
    return np.asarray(layout.content.data)[: offsets[-1]], np.diff(offsets)


def _group(
    group: Mapping[str, Any], columns: Mapping[str, Any], n_jets: int, non_finite: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Values [S,F] of the columns of a group, and its numbers of candidates [J]."""
    branches = {name: columns[name] for name in group["branches"]}
    lists = [counts for _, counts in branches.values() if counts is not None]
    counts = np.minimum(lists[0], group["length"]) if lists else np.ones(n_jets, np.int64)
    jets = np.repeat(np.arange(n_jets), counts)
    known: dict[str, np.ndarray] = {}
    for name, (values, own) in branches.items():
        if own is None:
            known[name] = values[jets]
        else:
            first = np.cumsum(own) - own
            inside = np.arange(len(jets)) - np.repeat(np.cumsum(counts) - counts, counts)
            known[name] = values[first[jets] + inside]
    matrix = np.empty((len(jets), len(group["columns"])), np.float32)
    with np.errstate(all="ignore"):
        for position, column in enumerate(group["columns"]):
            name = column["name"]
            if "expression" in column:
                known[name] = np.broadcast_to(_evaluated(column["expression"], known), len(jets))
            matrix[:, position] = known[name]
            if name in non_finite:
                stored = matrix[:, position]
                stored[~np.isfinite(stored)] = non_finite[name]
                known[name] = stored
            if column["half"]:
                limit = float(np.finfo(np.float16).max)
                matrix[:, position] = np.clip(matrix[:, position], -limit, limit).astype(np.float16)
    return matrix, np.asarray(counts, np.int64)


def _evaluated(tree: Any, known: Mapping[str, np.ndarray]) -> Any:  # noqa: ANN401 - a JSON tree; a number or an array
    wide = {name: array.astype(np.int64) if array.dtype.kind in "iu" else array for name, array in known.items()}
    return evaluate(node(tree), wide)


def node(tree: Any) -> Node:  # noqa: ANN401 - any JSON value
    """The expression of a JSON tree: a number, the name of a column, or [function, arguments, options]."""
    if isinstance(tree, str):
        return Name(tree)
    if isinstance(tree, list):
        function, arguments, options = tree
        return Call(function, tuple(map(node, arguments)), tuple((key, node(value)) for key, value in options.items()))
    return Number(tree)


def _without_padding(values: np.ndarray, counts: np.ndarray, group: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Values and counts without the all-zero candidates at the end of each jet, and at most `slots` of them."""
    if group["name"] == "global":
        return values, counts
    begin = np.cumsum(counts) - counts
    inside = np.arange(len(values)) - np.repeat(begin, counts) + 1
    kept = np.zeros_like(counts)
    np.maximum.at(kept, np.repeat(np.arange(len(counts)), counts), np.where((values != 0).any(axis=1), inside, 0))
    kept = np.minimum(kept, group["slots"])
    return values[inside <= np.repeat(kept, counts)], kept


def _padded(values: np.ndarray, counts: np.ndarray, group: Mapping[str, Any]) -> np.ndarray:
    """[J,N,F], or [J,F] of the jet itself."""
    if group["name"] == "global":
        return np.ascontiguousarray(values)
    slots = max(int(counts.max(initial=0)), 1)
    out = np.zeros((len(counts), slots, values.shape[1]), np.float32)
    out[np.arange(slots) < counts[:, None]] = values
    return out
