"""Fake predictions and a fake dataset, deterministic."""

from types import SimpleNamespace

import numpy as np
import pytest

from bhive_mltf.evaluation.predictions import Predictions

SIX = ("b", "bb", "leptonicB", "c", "uds", "g")
JET_CLASS = tuple(f"label_{name}" for name in ["QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl"])


def make_predictions(n_jets, n_classes, *, separation=3.0, seed=0, n_processes=2, regression=()):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, n_jets)
    logits = rng.normal(0.0, 1.5, (n_jets, n_classes)).astype(np.float32)
    logits[np.arange(n_jets), truth] += separation
    kinematics = np.stack([rng.uniform(20, 500, n_jets), rng.uniform(-2.5, 2.5, n_jets)], axis=1)
    return Predictions(
        logits=logits,
        truth=truth,
        process=rng.integers(0, n_processes, n_jets),
        kinematics=kinematics.astype(np.float32),
        jet_id=np.stack([np.arange(n_jets) // 100, np.arange(n_jets) % 100], axis=1),
        regression=rng.normal(1.0, 0.1, (n_jets, len(regression))).astype(np.float32),
        regression_target=rng.normal(1.0, 0.1, (n_jets, len(regression))).astype(np.float32),
        regression_names=regression,
        seconds=1.5,
        loss=0.5,
        accuracy=0.75,
    )


def make_config(processes=("TT", "QCD"), cuts=None):
    return SimpleNamespace(processes=processes, process_cuts=cuts or {})


def make_dataset(n_files=3, jet_ids=True):
    sources = [SimpleNamespace(path=f"data/file_{i}.root", content_id=f"{i:016x}") for i in range(n_files)]
    shards = [SimpleNamespace(file="file_0.lz4", checksum="abc")]
    return SimpleNamespace(manifest=SimpleNamespace(sources=sources, shards=shards, jet_ids=jet_ids))


@pytest.fixture
def six():
    return SIX


@pytest.fixture
def jet_class():
    return JET_CLASS


@pytest.fixture
def fake():
    return make_predictions


@pytest.fixture
def config():
    return make_config


@pytest.fixture
def dataset():
    return make_dataset
