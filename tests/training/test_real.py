"""The whole way: ROOT files, Arrow shards, DeepJet; two ranks against one."""

import numpy as np
import pytest
import torch

from bhive_mltf import config as configs
from bhive_mltf.ranks.distributed import World
from bhive_mltf.testing.jets import write_btag, write_jetclass
from bhive_mltf.training import build as ingredients
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.checkpointing.best_model import load_best_model
from bhive_mltf.training.launch import launch
from bhive_mltf.training.plan import TrainingPlan
from tests.helpers.building import build

KWARGS = {"dropout": 0.0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jets")
    config = configs.load("offline_run3").model_copy(update={"processes": ("TT", "QCD")})
    files = [
        write_btag(folder / process / "jets.root", 90, seed, process) for seed, process in enumerate(("TT", "QCD"))
    ]
    build(config, [str(path) for path in files], folder / "dataset", chunk_size=70)
    return folder / "dataset", config


def plan(directory, dataset, **values):
    defaults = {
        "directory": directory,
        "dataset": dataset[0],
        "config": dataset[1],
        "model_name": "DeepJet",
        "model_kwargs": KWARGS,
        "epochs": 2,
        "batch_size": 31,
        "loss_weighting": True,
        "training_precision": "float64",
        "unmatched": "drop",
        "n_threads": 0,
        "tracking": False,
        "ranks_per_node": 1,
        "threads_per_rank": 1,
    }
    return TrainingPlan(**{**defaults, **values})


@pytest.mark.long
def test_deepjet_on_arrow_shards_with_one_and_two_ranks(tmp_path, dataset, capfd):
    launch(plan(tmp_path / "one", dataset))
    launch(plan(tmp_path / "two", dataset, ranks_per_node=2))
    for name in ("training", "validation"):
        one, two = (np.load(tmp_path / where / f"{name}_metrics.npz") for where in ("one", "two"))
        assert np.isfinite(one["loss"]).all()
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-9, atol=0)
        np.testing.assert_allclose(one["acc"], two["acc"], rtol=1e-9, atol=0)
    model = load_best_model(tmp_path / "two", dataset[1], "DeepJet", KWARGS)
    state = checkpoint.read_checkpoint(tmp_path / "two" / "best_model.pt")
    assert list(model.state_dict()) == list(state["model_state_dict"])
    assert state["classes"][0] == ["b", ["isB"]]
    assert "epoch 2/2: loss" in capfd.readouterr().out


@pytest.mark.parametrize(("tops", "least", "most"), [(20.0, 0.7, 1.0), (0.05, 0.0, 0.3)])
def test_w29_process_weights_of_the_config_reach_the_training(tmp_path, dataset, tops, least, most):
    config = dataset[1].model_copy(update={"process_weights": {"TT": tops, "QCD": 1.0}})
    made = plan(tmp_path, (dataset[0], config), loss_weighting=False, batch_size=2)
    training = ingredients.build(made, World()).training
    process = torch.cat([batch.process for epoch in range(5) for batch in training.epoch(epoch)])
    assert len(process) > 20
    assert least < (process == config.processes.index("TT")).double().mean() < most


@pytest.mark.long
def test_packed_part_on_two_ranks_equals_one(tmp_path):
    """The norms are those of the global batch."""
    config = configs.load("jet_class")
    files = [
        write_jetclass(tmp_path / f"{name}_000.root", 60, 1, label)
        for name, label in (("HToBB", "label_Hbb"), ("TTBar", "label_Tbqq"))
    ]
    sizes = {"num_layers": 1, "num_cls_layers": 1, "embed_dim": 8, "num_heads": 2, "pair_embed_dim": 6, "dropout": 0.0}
    values = {
        "model_name": "ParticleTransformer_JetClass",
        "model_kwargs": sizes,
        "batch_size": 25,
        "unmatched": "error",
    }
    build(config, [str(path) for path in files], tmp_path / "dataset", chunk_size=70)
    dataset = (tmp_path / "dataset", config)
    states = []
    for name, ranks in (("one", 1), ("two", 2)):
        launch(plan(tmp_path / name, dataset, **values, ranks_per_node=ranks))
        states.append(checkpoint.read_checkpoint(tmp_path / name / "model_0.pt"))
    for key in ("loss_train", "loss_val", "acc_val"):
        np.testing.assert_allclose(*(state["histories"][key] for state in states), rtol=1e-8, atol=0)
    for key, value in states[0]["model_state_dict"].items():
        torch.testing.assert_close(value, states[1]["model_state_dict"][key], rtol=1e-7, atol=1e-9)
