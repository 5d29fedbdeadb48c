"""UParT from ROOT files to predictions: losses in parts, histories, continuation, regression beside logits."""

import numpy as np
import pytest
import torch

from bhive_mltf import config as configs
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.errors import ParameterError
from bhive_mltf.evaluation.predictions import predict
from bhive_mltf.models import registry
from bhive_mltf.ranks.distributed import World
from bhive_mltf.testing.jets import write_hlt, write_lost_tracks
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.checkpointing.best_model import load_best_model
from bhive_mltf.training.engine import train
from bhive_mltf.training.launch import launch
from bhive_mltf.training.losses import create_loss, jet_losses
from bhive_mltf.training.metrics import N_SUMS, Figures
from bhive_mltf.training.monitoring.observers import Observer
from bhive_mltf.training.plan import TrainingPlan
from bhive_mltf.training.step import Stepper
from tests.helpers.building import build

KWARGS = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "dropout": 0.0}
ARRAYS = {"loss", "acc", "loss_cat", "loss_reg"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jets")
    config = configs.load("part_run3_lt")
    files = [write_lost_tracks(folder / process / "jets.root", 90, 1, process) for process in ("TT", "QCD")]
    return folder / "dataset", config, build(config, [str(path) for path in files], folder / "dataset")


def plan(directory, dataset, **values):
    defaults = {
        "directory": directory,
        "dataset": dataset[0],
        "config": dataset[1],
        "model_name": "UParT_v0",
        "model_kwargs": KWARGS,
        "loss_function": "CrossEntropyLogCosh",
        "epochs": 2,
        "batch_size": 31,
        "loss_weighting": True,
        "training_precision": "float64",
        "unmatched": "drop",
        "n_threads": 0,
        "tracking": False,
        "ranks_per_node": 1,
    }
    return TrainingPlan(**{**defaults, **values})


class Kept(Observer):
    def __init__(self):
        self.results = []

    def epoch(self, result):
        self.results.append(result)


class Cut(Observer):
    """Ends the process, so to say, in the second epoch."""

    def phase(self, name, epoch, done, total):
        self.number = epoch

    def advance(self, n_jets):
        self.steps = getattr(self, "steps", 0) + (self.number == 1)
        if self.steps == 3:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset):
    directory = tmp_path_factory.mktemp("trained")
    kept = Kept()
    train(plan(directory, dataset), World(), observer=kept)
    return directory, kept.results


def metrics(directory, part):
    with np.load(directory / f"{part}_metrics.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_w24_histories_hold_the_parts_not_the_total(trained, part):
    values = metrics(trained[0], part)
    assert set(values) == ARRAYS
    assert all(len(entries) == 2 for entries in values.values())
    np.testing.assert_allclose(values["loss_cat"] + values["loss_reg"], values["loss"], rtol=1e-12)
    assert (values["loss_reg"] > 0).all()
    assert (values["loss_cat"] != values["loss"]).all()


def test_w24_checkpoints_and_observers_have_the_parts_too(trained):
    directory, results = trained
    state = checkpoint.read_checkpoint(directory / "model_1.pt")
    for part, name in (("train", "training"), ("val", "validation")):
        for loss in ("loss", "loss_cat", "loss_reg"):
            assert state[f"{loss}_{part}"] == metrics(directory, name)[loss][-1]
    assert results[-1].validation.parts["loss_reg"] == state["loss_reg_val"]


def test_w24_a_continued_training_keeps_histories_without_scaler(trained, dataset, tmp_path):
    """A training that was cut in its second epoch ends with the same bits."""
    with pytest.raises(KeyboardInterrupt):
        train(plan(tmp_path, dataset, checkpoint_steps=2), World(), observer=Cut())
    assert checkpoint.step_files(tmp_path)
    assert not (tmp_path / "model_1.pt").exists()
    train(plan(tmp_path, dataset, checkpoint_steps=2), World(), observer=Observer())
    one, two = (checkpoint.read_checkpoint(directory / "model_1.pt") for directory in (trained[0], tmp_path))
    assert one["scaler_state_dict"] == two["scaler_state_dict"] == {}
    for key, value in one["model_state_dict"].items():
        assert torch.equal(value, two["model_state_dict"][key]), key
    for key, value in metrics(trained[0], "validation").items():
        np.testing.assert_array_equal(metrics(tmp_path, "validation")[key], value)


def loader(dataset, model, **values):
    common = {"batch_size": 31, "n_threads": 0, "seed": 1, "weighted": False, "unmatched": "drop", "mode": "validation"}
    return BatchLoader(dataset[2], range(len(dataset[2])), model.inputs, config=dataset[1], **{**common, **values})


def test_validation_over_ranks_is_exact(dataset):
    """Sums of two ranks are those of one, and the loss is that of all jets by hand."""
    torch.manual_seed(1)
    model = registry.create("UParT_v0", dataset[1], **KWARGS).double().eval()
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    stepper = Stepper(plan("unused", dataset), World(), model, create_loss("CrossEntropyLogCosh"), sgd)
    with torch.no_grad():
        sums = [
            sum(
                (stepper.validate(batch) for batch in loader(dataset, model, rank=rank, world_size=size).epoch(0)), zero
            )
            for size in (1, 2)
            for rank, zero in zip(range(size), [torch.zeros(N_SUMS, dtype=torch.float64)] * size, strict=True)
        ]
        torch.testing.assert_close(sums[1] + sums[2], sums[0], rtol=1e-12, atol=1e-12)
        (batch,) = loader(dataset, model, batch_size=1000).epoch(0)
        batch = batch.map(lambda values: values.double() if values.is_floating_point() else values)
        losses = jet_losses(create_loss("CrossEntropyLogCosh"), model, model(batch), batch)[1]
    figures = Figures.of(sums[0], multi_task=True)
    assert figures.loss_reg == pytest.approx(float(losses.regression.mean()), rel=1e-9)
    assert figures.loss_cat == pytest.approx(float(losses.classes.mean()), rel=1e-9)


@pytest.mark.long
def test_two_ranks_train_like_one(dataset, trained, tmp_path):
    launch(plan(tmp_path, dataset, ranks_per_node=2, threads_per_rank=1))
    for part in ("training", "validation"):
        for key, value in metrics(trained[0], part).items():
            np.testing.assert_allclose(metrics(tmp_path, part)[key], value, rtol=1e-9)


def test_predictions_keep_the_regression_apart(trained, dataset):
    model = load_best_model(trained[0], dataset[1], "UParT_v0", KWARGS)
    n_jets = len(dataset[2])
    found = predict(model, loader(dataset, model, mode="inference").epoch(0), "cpu", n_jets)
    assert found.logits.shape == (n_jets, 6)
    assert found.regression.shape == found.regression_target.shape == (n_jets, 4)
    assert found.regression_names == model.regression
    assert ((found.regression_target >= 0.3 - 1e-6) & (found.regression_target <= 2)).all()
    assert len(found.take(found.truth >= 0).regression) == (found.truth >= 0).sum()


def test_w21_loss_weighting_with_labels_by_condition(tmp_path):
    """Truths of hlt_run3 are a mapping, which upstream's class weights cannot read."""
    config = configs.load("hlt_run3")
    build(config, [str(write_hlt(tmp_path / "TT" / "jets.root", 150, 1))], tmp_path / "dataset")
    values = {"model_name": "UParticleNet_InProHLT", "loss_function": "CrossEntropyLogCoshHLT", "epochs": 1}
    kwargs = {"embed_dim": 8, "dropout": 0.0}
    train(
        plan(tmp_path / "t", (tmp_path / "dataset", config), model_kwargs=kwargs, **values),
        World(),
        observer=Observer(),
    )
    found = metrics(tmp_path / "t", "validation")
    assert set(found) == ARRAYS
    assert np.isfinite([*found["loss_cat"], *found["loss_reg"]]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss_function": "CrossEntropyLoss"}, "model UParT_v0 .*: take --loss-function CrossEntropyLogCosh$"),
        (
            {"model_name": "ParticleTransformer2"},
            "which model ParticleTransformer2 does not have: take .*CrossEntropyLoss$",
        ),
    ],
)
def test_a_loss_of_the_other_kind_is_refused(dataset, tmp_path, values, message):
    with pytest.raises(ParameterError, match=message):
        train(plan(tmp_path, dataset, **values), World(), observer=Observer())
