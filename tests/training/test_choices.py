"""Optimisers, schedules, losses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bhive_mltf.errors import ParameterError
from bhive_mltf.training.losses import class_weights, create_loss
from bhive_mltf.training.names import LOSSES, OPTIMIZERS, SCHEDULES
from bhive_mltf.training.optimisers import create_optimizer
from bhive_mltf.training.schedules import Schedule


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_and_takes_only_what_it_knows(name):
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = create_optimizer(name, [weight], 0.1, betas=(0.9, 0.99), eps=1e-6)
    assert type(optimizer) is getattr(torch.optim, name)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0].get("betas", (0.9, 0.99)) == (0.9, 0.99)
    (weight**2).sum().backward()
    optimizer.step()
    assert (weight < 1).all()


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ParameterError, match="AdamW"):
        create_optimizer("Lion", [], 0.1)
    with pytest.raises(ParameterError, match="epoch_lin_decay"):
        Schedule("step", 3, 0.1)
    with pytest.raises(ParameterError, match="CrossEntropyLoss"):
        create_loss("Hinge")


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 20])
def test_epoch_lin_decay_is_upstreams_multi_step_schedule(epochs):
    n = max(1, int(0.3 * epochs))
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, milestones=list(range(epochs - n, epochs)), gamma=0.01 ** (1 / n)
    )
    schedule = Schedule("epoch_lin_decay", epochs, 0.01)
    for epoch in range(epochs):
        assert schedule.factor(epoch, 0.5) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        reference.step()


def test_batch_lin_decay_is_flat_then_geometric():
    schedule = Schedule("batch_lin_decay", 10, 1e-2)
    assert schedule.factor(0, 0.0) == schedule.factor(6, 0.999) == 1.0
    assert schedule.factor(8, 0.5) == pytest.approx(0.1)
    assert schedule.factor(9, 1.0) == pytest.approx(0.01)


def test_w27_batch_cosine_warmup_works_for_one_epoch():
    schedule = Schedule("batch_cosine_warmup", 10, 0.1)
    assert [schedule.factor(0, x) for x in (0.0, 0.5)] == pytest.approx([0.1, 0.55])
    assert schedule.factor(1, 0.0) == 1.0
    assert schedule.factor(5, 0.5) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    short = Schedule("batch_cosine_warmup", 1, 0.1)
    assert short.factor(0, 0.0) == pytest.approx(0.1)
    assert short.factor(0, 0.1) == pytest.approx(1.0)
    assert short.factor(0, 1.0) == pytest.approx(0.1)


@given(
    name=st.sampled_from(SCHEDULES),
    epochs=st.integers(0, 1000),
    decay=st.floats(1e-6, 1.0),
    epoch=st.integers(0, 2000),
    fraction=st.floats(0, 1),
)
def test_w27_a_factor_is_finite_and_within_its_ends(name, epochs, decay, epoch, fraction):
    factor = Schedule(name, epochs, decay).factor(epoch, fraction)
    assert decay * (1 - 1e-9) <= factor <= 1 + 1e-9
    assert epoch < epochs + 1 or factor == pytest.approx(decay)


def test_loss_is_per_jet_and_weighted_by_class():
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    plain = create_loss(LOSSES[0])(logits, target)
    weighted = create_loss(LOSSES[0], torch.tensor([1.0, 0.5, 0.0]))(logits, target)
    assert plain.shape == (5,)
    assert torch.allclose(weighted, plain * torch.tensor([1, 0.5, 0, 0.5, 1]))


def test_class_weights_are_inverse_to_abundance():
    histogram = np.array([[[10, 20]], [[10, 0]], [[5, 5]], [[0, 0]]], np.float32)
    classes = (("b", ("isB", "isBB")), ("c", ("isC",)), ("tau", ("isTau",)))
    weights = class_weights(histogram, ("isB", "isBB", "isC", "isTau"), classes)
    assert weights.tolist() == pytest.approx([0.25, 1.0, 0.0])
