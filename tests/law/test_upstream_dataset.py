"""A training set of upstream, written here byte by byte from the description of its format, trains as it is."""

import json
import struct

import lz4.frame
import numpy as np
import pytest

from bhive_mltf import config
from tests.helpers.commands import flat

N_JETS = 400  # per file


def write_file(path, columns, rng):
    """One frame of little-endian float32: rows, columns, then the rows."""
    names = [name for block in columns for name in block]
    truths = columns[-2]
    rows = []
    for _ in range(N_JETS):
        label = rng.integers(len(truths))
        row = [float(x) for x in rng.normal(float(label), 1.0, len(names) - len(truths) - 2)]
        row[0], row[1] = 50.0, 0.5  # jet_pt, jet_eta
        rows.append([*row, 0.0, *[float(i == label) for i in range(len(truths))], 1.0])
    payload = struct.pack("<2f", len(rows), len(names)) + b"".join(struct.pack(f"<{len(r)}f", *r) for r in rows)
    path.write_bytes(lz4.frame.compress(payload))
    return np.array([[r[-1 - len(truths) + i] for i in range(len(truths))] for r in rows]).sum(axis=0)


def write_dataset(folder, loaded):
    """processed_files.txt, histogram.npy, weights.json and two shards, as upstream leaves them."""
    folder.mkdir(parents=True)
    columns = []
    for group in loaded.groups:
        repeat = 1 if group.name == "global" else group.length
        columns.append([f"{group.name}_{i}_{name}" for i in range(repeat) for name in group.columns])
    truths = [truth.label for truth in loaded.truths]
    columns += [["process"], truths, ["weight"]]
    rng = np.random.default_rng(4)
    counts = sum(write_file(folder / f"file_{k}.lz4", columns, rng) for k in range(2))
    histogram = np.zeros((len(truths), len(loaded.bins_pt) - 1, len(loaded.bins_eta) - 1), np.float32)
    histogram[:, 6, 4] = counts
    np.save(folder / "histogram.npy", histogram)
    # older sets have a single chunk size for all files
    (folder / "weights.json").write_text(json.dumps({"chunk_size": [N_JETS], "sum_weight": [float(N_JETS)] * 2}))
    (folder / "processed_files.txt").write_text("\n".join(str(folder / f"file_{k}.lz4") for k in range(2)))


@pytest.mark.long
def test_w14_an_upstream_dataset_written_by_hand_trains(sandbox):
    loaded = config.load("offline_run3")
    folder = sandbox.data_path / "DatasetConstructorTask/offline_run3/theirs"
    write_dataset(folder, loaded)
    options = {
        "--config": "offline_run3", "--model-name": "DeepJet", "--training-version": "t1", "--epochs": 4,
        "--dataset-version": "theirs", "--train-val-split": 0.5, "--batch-size": 40, "--n-threads": 0,
        "--tracking": False,
    }  # fmt: skip
    sandbox.run("TrainingTask", *flat(options), "--loss-weighting", True)
    (training,) = sandbox.data_path.glob("TrainingTask/offline_run3/theirs/t1/DeepJet/epochs_4/nominal")
    with np.load(training / "validation_metrics.npz") as metrics:
        losses, accuracies = metrics["loss"], metrics["acc"]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert accuracies[-1] > 0.5  # six classes; their jets are made to differ
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["derived"]
    assert manifest["n_jets"] == 2 * N_JETS
