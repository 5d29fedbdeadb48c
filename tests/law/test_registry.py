"""Each network of the registry through `law run`, and with them each optimiser, schedule and loss by name."""

import json
from itertools import cycle

import numpy as np
import pytest

from bhive_mltf.models import registry
from bhive_mltf.testing import jets
from bhive_mltf.training import choices
from bhive_mltf.training.checkpointing.checkpoint import read_checkpoint
from tests.helpers.commands import Sandbox, flat
from tests.helpers.model_factory import CONFIGS, SMALL
from tests.models.conftest import VARIANTS

# one of the variants, which differ in their classes and sizes
MODELS = sorted((set(registry.names()) - VARIANTS) | {"ParticleTransformer2_LT_tau"})
N_JETS = 90  # per file
LOSSES = {len(choices.REGRESSION_LOSSES.get(loss, ())): loss for loss in choices.LOSSES}


def write(folder, config):
    """A list of two files of toy jets that this config reads."""
    folder.mkdir()
    if config == "jet_class":
        labels = {"HToBB": "label_Hbb", "TTBar": "label_Tbqq"}
        paths = [jets.write_jetclass(folder / f"{name}.root", N_JETS, 1, label) for name, label in labels.items()]
    else:
        maker = jets.write_hlt if config == "hlt_run3" else jets.write_lost_tracks
        paths = [maker(folder / f"{process}.root", N_JETS, 1, process) for process in ("TT", "QCD")]
    (folder / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    return folder / "list.txt"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory, law_home):
    """A training set for each config is made by the first training on it."""
    sandbox = Sandbox(tmp_path_factory.mktemp("registry"), law_home)
    sandbox.lists = {config: write(sandbox.folder / config, config) for config in set(CONFIGS.values())}
    return sandbox


@pytest.mark.nightly
def test_as_many_models_as_optimisers_and_schedules():
    assert len(MODELS) >= max(len(choices.OPTIMIZERS), len(choices.SCHEDULES))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("model", "optimizer", "schedule"),
    [*zip(MODELS, cycle(choices.OPTIMIZERS), cycle(choices.SCHEDULES), strict=False)],
)
def test_from_ntuples_to_predictions(sandbox, model, optimizer, schedule):
    config = CONFIGS[model]
    options = {
        "--config": config, "--model-name": model, "--model-kwargs": json.dumps(SMALL[model]),
        "--dataset-version": "v1", "--filelist": sandbox.lists[config], "--test-dataset-version": "v1",
        "--training-version": optimizer, "--optimizer": optimizer, "--lr-scheduler": schedule,
        "--loss-function": LOSSES[len(registry.entry(model).regression or ())], "--unmatched": "drop",
        "--TrainingTask-loss-weighting": True, "--epochs": 2, "--batch-size": 40, "--n-threads": 0, "--tracking": False,
    }  # fmt: skip
    sandbox.run("InferenceTask", *flat(options))
    (training,) = (sandbox.data_path / "TrainingTask" / config / "v1" / optimizer / model).rglob("best_model.pt")
    first, last = (read_checkpoint(training.parent / f"model_{epoch}.pt")["model_state_dict"] for epoch in (0, 1))
    assert any((last[name] != first[name]).any() for name in last if "running" not in name and "num" not in name)
    (prediction,) = (sandbox.data_path / "InferenceTask" / config / "v1/v1" / optimizer / model).rglob("prediction.npy")
    assert np.isfinite(np.load(prediction)).all()
