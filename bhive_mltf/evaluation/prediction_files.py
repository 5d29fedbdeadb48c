"""The files of an inference directory: upstream's arrays, jet ids, and a ROOT tree.

File            content, N jets in the order of the input files
prediction.npy  float32 [N,C], raw logits; written last: where it is, all is
truth.npy       int64 [N]; -1: in no class
process.npy     float32 [N], as upstream
kinematics.npy  float32 [N,2], (pt, eta)
jet_id.npy      int64 [N,2], (index of the file, entry)
regression.npy, regression_target.npy   float32 [N,R], of multi-task models only; names of the R outputs in files.json
files.json      what the index and the entry mean, with path and content id of each file
inference_time.npy, inference_metrics.npz   seconds; time, loss, acc
output.root     tree `tree` with probabilities, one-hot truth, regression outputs and targets, `file` and `entry`
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bhive_mltf.data.dataset import describe_files
from bhive_mltf.errors import CorruptFileError, DataError
from bhive_mltf.evaluation.discriminators import are_probabilities, softmax
from bhive_mltf.evaluation.predictions import PER_JET, Predictions
from bhive_mltf.files import atomic, disk

if TYPE_CHECKING:
    from bhive_mltf.data.dataset import Dataset

# upstream's branch names for its six classes, whatever their order
_UPSTREAM_BRANCHES = {"b": "isB", "bb": "isBB", "leptonicB": "isLeptB", "c": "isC", "uds": "isUDS", "g": "isG"}
_ROOT_CHUNK = 200_000  # jets per basket group


def write(predictions: Predictions, directory: str | Path, dataset: Dataset, classes: Iterable[str]) -> None:
    """Write all files of `predictions` of `dataset` into `directory`; each appears whole, `prediction.npy` last.

    Raises
    ------
    DiskError
        The disk does not take them.
    """
    directory = Path(directory)
    with disk.writing(directory):
        # an older one must not make a half-written set look whole
        (directory / "prediction.npy").unlink(missing_ok=True)
        atomic.write_array(directory / "jet_id.npy", predictions.jet_id)
        description = describe_files(dataset)
        if predictions.regression_names:
            description["regression"] = list(predictions.regression_names)
            atomic.write_array(directory / "regression.npy", predictions.regression)
            atomic.write_array(directory / "regression_target.npy", predictions.regression_target)
        atomic.write_json(directory / "files.json", description)
        with atomic.replace_file(directory / "output.root") as path:
            _write_root(path, predictions, tuple(classes))
        atomic.write_array(directory / "kinematics.npy", predictions.kinematics)
        atomic.write_array(directory / "process.npy", predictions.process.astype(np.float32))
        atomic.write_array(directory / "truth.npy", predictions.truth)
        with atomic.replace_file(directory / "inference_metrics.npz") as path, path.open("wb") as stream:
            np.savez(stream, time=predictions.seconds, loss=predictions.loss, acc=predictions.accuracy)
        atomic.write_array(directory / "inference_time.npy", np.float64(predictions.seconds))
        atomic.write_array(directory / "prediction.npy", predictions.logits)


def read_predictions(directory: str | Path) -> Predictions:
    """Read back what `write` wrote, or what upstream's InferenceTask did (then without jet ids: -1).

    Raises
    ------
    DataError
        A file is missing.
    CorruptFileError
        A file cannot be read, or the arrays differ in length.
    """
    directory = Path(directory)
    logits, truth = _read(directory / "prediction.npy"), _read(directory / "truth.npy")
    unknown = np.full((len(truth), 2), -1, np.int64)
    ids = directory / "jet_id.npy"
    names = _regression_names(directory)
    regression = {name: np.empty((len(truth), 0), np.float32) for name in ("regression", "regression_target")}
    if names:
        regression = {name: _read(directory / f"{name}.npy") for name in regression}
    metrics = _read_metrics(directory / "inference_metrics.npz")
    predictions = Predictions(
        logits=logits.astype(np.float32, copy=False),
        truth=truth.astype(np.int64),
        process=_read(directory / "process.npy").astype(np.int64),
        kinematics=_read(directory / "kinematics.npy").astype(np.float32, copy=False),
        jet_id=_read(ids).astype(np.int64, copy=False) if ids.exists() else unknown,
        **regression,
        regression_names=names,
        seconds=float(metrics.get("time", math.nan)),
        loss=float(metrics.get("loss", math.nan)),
        accuracy=float(metrics.get("acc", math.nan)),
    )
    lengths = {name: len(getattr(predictions, name)) for name in PER_JET}
    if len(set(lengths.values())) != 1:
        raise CorruptFileError(f"The arrays in {directory} differ in length: {lengths}: run InferenceTask again")
    return predictions


def _regression_names(directory: Path) -> tuple[str, ...]:
    path = directory / "files.json"
    return tuple(json.loads(path.read_text(encoding="utf-8")).get("regression", ())) if path.exists() else ()


def branch_names(classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Branches of output.root, one per class: of the probabilities and of the one-hot truth."""
    if set(classes) == set(_UPSTREAM_BRANCHES):
        truth = [_UPSTREAM_BRANCHES[name] for name in classes]
    else:
        truth = [re.sub(r"\W", "_", name, flags=re.ASCII) for name in classes]
    return [f"prob_{name}" for name in truth], truth


def _write_root(path: Path, predictions: Predictions, classes: Sequence[str]) -> None:
    import uproot

    names = branch_names(classes)
    types: dict[str, Any] = {"Jet_pt": np.float32, "Jet_eta": np.float32, **dict.fromkeys(names[0], np.float32)}
    types |= {**dict.fromkeys(names[1], np.int32), "file": np.int32, "entry": np.int64}
    types |= dict.fromkeys(_regression_branches(predictions), np.float32)
    with uproot.recreate(path) as file:
        tree = file.mktree("tree", types)
        for branches in _root_chunks(predictions, names):
            tree.extend({name: values.astype(types[name], copy=False) for name, values in branches.items()})


def _root_chunks(predictions: Predictions, names: tuple[list[str], list[str]]) -> Iterator[dict[str, Any]]:
    softmax_needed = not are_probabilities(predictions.logits)
    for start in range(0, len(predictions), _ROOT_CHUNK):
        part = predictions.take(np.arange(start, min(start + _ROOT_CHUNK, len(predictions))))
        probability = softmax(part.logits) if softmax_needed else part.logits
        branches: dict[str, Any] = {"Jet_pt": part.kinematics[:, 0], "Jet_eta": part.kinematics[:, 1]}
        branches |= {name: probability[:, i] for i, name in enumerate(names[0])}
        branches |= {name: part.truth == i for i, name in enumerate(names[1])}
        yield {**branches, **_regression_branches(part), "file": part.jet_id[:, 0], "entry": part.jet_id[:, 1]}


def _regression_branches(predictions: Predictions) -> dict[str, Any]:
    """Per output its value and what it should be."""
    columns = {}
    for i, name in enumerate(predictions.regression_names):
        columns[f"reg_{name}"] = predictions.regression[:, i]
        columns[f"reg_{name}_target"] = predictions.regression_target[:, i]
    return columns


def _read_metrics(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    with _read(path) as arrays:
        return dict(arrays)


def _read(path: Path) -> Any:  # noqa: ANN401 - an array, or the arrays of an npz
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: the inference is not complete, run InferenceTask") from None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f"{path} cannot be read ({error}): remove it and run InferenceTask again") from error
