"""Trainings and predictions with an attack."""

import dataclasses

import numpy as np
import pytest
import torch

from bhive_mltf.attacks.attack import pick_attack
from bhive_mltf.attacks.options import AttackOptions
from bhive_mltf.errors import ParameterError
from bhive_mltf.evaluation.predictions import predict
from bhive_mltf.ranks.distributed import World
from bhive_mltf.ranks.signals import TrainingInterruptedError
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.engine import train
from bhive_mltf.training.monitoring.observers import Observer
from bhive_mltf.training.plan import TrainingPlan
from tests.helpers import standin
from tests.helpers.standin import plan
from tests.training.test_engine import Seen, same

PGD = {"attack": "pgd", "attack_magnitude": 0.2, "attack_iterations": 2}


def run(directory, observer=None, **values):
    made = plan(directory, epochs=2, **values)
    train(made, World(), standin.build, observer or Observer())
    return checkpoint.read_checkpoint(checkpoint.epoch_path(directory, 1))


@pytest.mark.parametrize(
    "attack",
    [PGD, {"attack": "jetfool", "attack_iterations": 2}, {"attack": "optimizer", "attack_uncertainty": 2.0}],
    ids=lambda attack: attack["attack"],
)
def test_training_jets_are_attacked_and_validation_jets_are_not(tmp_path, attack):
    state = run(tmp_path, **attack)
    nominal = run(tmp_path / "nominal")
    assert state["loss_train"] > nominal["loss_train"]
    parts = standin.build(plan(tmp_path), World())
    parts.model.load_state_dict(state["model_state_dict"])
    parts.model.eval()
    losses, weights = [], []
    for batch in parts.validation.epoch(0):
        losses.append(torch.nn.functional.cross_entropy(parts.model(batch).detach(), batch.target, reduction="none"))
        weights.append(parts.class_weights[batch.target])
    expected = (torch.cat(losses) * torch.cat(weights)).mean().item()
    assert state["loss_val"] == pytest.approx(expected, rel=1e-5)


def test_a_cut_training_with_an_attack_goes_on_to_the_same_bits(tmp_path):
    kwargs = {**PGD, "model_kwargs": {"dropout": 0.3}}
    whole = run(tmp_path / "whole", **kwargs)
    with pytest.raises(TrainingInterruptedError):
        run(tmp_path / "cut", Seen(stop_at=5), **kwargs)
    same(whole, run(tmp_path / "cut", **kwargs))


def test_an_adversarial_training_withstands_the_attack_better(tmp_path):
    made = standin.build(plan(tmp_path), World())
    options = AttackOptions("pgd", 0.5, 2)
    losses = {}
    for name, values in (("nominal", {}), ("adversarial", {**PGD, "attack_magnitude": 0.5})):
        model = standin.Tiny()
        model.load_state_dict(run(tmp_path / name, **values)["model_state_dict"])
        attack = pick_attack(options, model, standin.INPUTS)
        n_jets = 50
        losses[name] = (
            predict(model, made.validation.epoch(0), "cpu", n_jets, input_order=False, attack=attack).loss
            - predict(model, made.validation.epoch(0), "cpu", n_jets, input_order=False).loss
        )
    assert 0 < losses["adversarial"] < losses["nominal"]


def test_predictions_of_attacked_jets_are_worse_and_in_place(tmp_path):
    made = standin.build(plan(tmp_path), World())
    made.model.load_state_dict(run(tmp_path)["model_state_dict"])
    attack = pick_attack(AttackOptions("pgd", 1.0), made.model, standin.INPUTS)
    nominal, attacked = (
        predict(made.model, made.validation.epoch(0), "cpu", 50, input_order=False, attack=one)
        for one in (None, attack)
    )
    assert attacked.loss > nominal.loss
    assert attacked.accuracy < nominal.accuracy
    for name in ("truth", "jet_id", "kinematics", "process"):
        np.testing.assert_array_equal(getattr(attacked, name), getattr(nominal, name))
    assert not any(p.requires_grad is False or p.grad is not None for p in made.model.parameters())


def test_factors_reach_the_attack(tmp_path):
    def build(made, world):
        factors = {"global": np.array([0.0, 1.0, 1.0]), "cpf": np.array([0.0, 0.0, 0.0])}
        return dataclasses.replace(standin.build(made, world), attack_factors=factors)

    def rank(directory, builder):
        made = plan(directory, epochs=1, **PGD, attack_individual_factors=True)
        train(made, World(), builder, Observer())
        return checkpoint.read_checkpoint(checkpoint.epoch_path(directory, 0))["loss_train"]

    assert rank(tmp_path / "a", build) < rank(tmp_path / "b", standin.build)


def test_a_plan_with_an_attack_that_cannot_be(tmp_path):
    with pytest.raises(ParameterError, match="attack_magnitude is 0, but must be above 0 for pgd"):
        plan(tmp_path, attack="pgd")
    made = plan(tmp_path, **PGD, attack_reduce=False)
    made.write()
    assert TrainingPlan.read(made.path).attack_options == AttackOptions("pgd", 0.2, 2, reduce=False)
