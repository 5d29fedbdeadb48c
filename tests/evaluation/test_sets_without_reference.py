"""Case 07: jets that are only evaluated need neither the reference flavour nor two labels."""

import numpy as np
import pytest

from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.data.weighting.report import WeightingReport
from bhive_mltf.errors import DataError, DatasetMismatchError
from bhive_mltf.evaluation.inference import InferencePlan
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training.build import open_validation_set
from bhive_mltf.training.engine import train
from bhive_mltf.training.plan import TrainingPlan
from tests.helpers.building import build, small_config, write_hand_made

N = 12
LIGHT = {"isB": np.zeros(N, np.int32), "isUD": (np.arange(N) % 3 != 1).astype(np.int32)}
ONLY_B = {"isB": np.ones(N, np.int32), "isC": np.zeros(N, np.int32), "isUD": np.zeros(N, np.int32)}


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path)


@pytest.mark.parametrize("changes", [LIGHT, ONLY_B], ids=["light jets", "one label"])
def test_f07_a_test_set_is_made_of_any_jets(tmp_path, config, changes):
    path = write_hand_made(tmp_path / "TT" / "a.root", N, **changes)
    with pytest.raises(DataError, match="reference flavour isB has no jets|only one truth label"):
        build(config, [path], tmp_path / "strict")
    dataset = build(config, [path], tmp_path / "set", is_test_set=True)
    assert dataset.manifest.weighting == "none"
    assert len(dataset) == N
    np.testing.assert_array_equal(dataset.index.weight, 1)
    assert "none" in WeightingReport.read(tmp_path / "set")[0].table()


def test_f07_a_good_test_set_is_weighted_as_ever(tmp_path, config):
    path = write_hand_made(tmp_path / "TT" / "a.root", N)
    strict, lenient = build(config, [path], tmp_path / "a"), build(config, [path], tmp_path / "b", is_test_set=True)
    assert lenient.manifest.weighting == "reference"
    assert lenient.manifest.digest == strict.manifest.digest


def test_f07_a_set_of_another_reference_is_only_evaluated(tmp_path, config):
    other = config.model_copy(update={"reference_flavour": "isUD"})
    build(other, [write_hand_made(tmp_path / "TT" / "a.root", N, **LIGHT)], tmp_path / "set")
    with pytest.raises(DatasetMismatchError):
        open_dataset(tmp_path / "set", config)
    assert len(open_dataset(tmp_path / "set", config, any_reference=True)) == N
    plan = InferencePlan.model_construct(dataset=tmp_path / "set", config=config, dataset_sidecar=tmp_path / "side")
    assert len(plan.open()) == N
    changed = small_config(tmp_path / "changed", bins_pt=[10, 2001])
    with pytest.raises(DatasetMismatchError):
        open_dataset(tmp_path / "set", changed, any_reference=True)


def test_f07_no_training_takes_a_test_set(tmp_path, config):
    build(config, [write_hand_made(tmp_path / "TT" / "a.root", N, **LIGHT)], tmp_path / "set", is_test_set=True)
    values = {"directory": tmp_path / "t", "dataset": tmp_path / "set", "config": config, "model_name": "DeepJet"}
    plan = TrainingPlan(**values, tracking=False, n_threads=0, epochs=1, batch_size=2)
    with pytest.raises(DataError, match="was made as a test set, .*: build a training set of its own under another"):
        train(plan, World())
    with pytest.raises(DataError, match="was made as a test set"):
        open_validation_set(plan.model_copy(update={"val_dataset": tmp_path / "set"}))
