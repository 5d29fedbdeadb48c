"""Optimisers, schedules, losses."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bhive_mltf.errors import ParameterError
from bhive_mltf.training.choices import LOSSES, OPTIMIZERS, SCHEDULES, WITHOUT_WEIGHT_DECAY, check_loss
from bhive_mltf.training.losses import class_weights, create_loss, log_cosh, pinball
from bhive_mltf.training.optim import optimisers
from bhive_mltf.training.optim.optimisers import create_optimizer
from bhive_mltf.training.optim.ranger import Ranger
from bhive_mltf.training.optim.schedules import LearningRateSchedule
from tests.helpers.memory_dataset import CLASSES, SCHEMA


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_and_takes_only_what_it_knows(name):
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = create_optimizer(name, [weight], 0.1, betas=(0.9, 0.99), eps=1e-6)
    assert type(optimizer) is (Ranger if name == "Ranger" else getattr(torch.optim, name))
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0].get("betas", (0.9, 0.99)) == (0.9, 0.99)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (weight < 1).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_the_optimizers_own_unless_given(name):
    weight = nn.Parameter(torch.ones(3, 2))
    if name in WITHOUT_WEIGHT_DECAY:
        assert "weight_decay" not in create_optimizer(name, [weight], 0.1).defaults
        with pytest.raises(ParameterError, match=f"weight_decay is 0.3, but the optimizer {name} has none"):
            create_optimizer(name, [weight], 0.1, weight_decay=0.3)
        return
    plain = weight.detach().clone().requires_grad_()
    torchs = Ranger([plain]) if name == "Ranger" else getattr(torch.optim, name)([plain], lr=0.1)
    assert create_optimizer(name, [weight], 0.1).defaults["weight_decay"] == torchs.defaults["weight_decay"]
    assert create_optimizer(name, [weight], 0.1, weight_decay=0.3).param_groups[0]["weight_decay"] == 0.3


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_all_weights_are_updated_in_one_kernel_if_torch_can(name):
    weights = [nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(3))]
    plain = [w.detach().clone().requires_grad_() for w in weights]
    optimizer = create_optimizer(name, weights, 0.1)
    assert optimizer.defaults["fused"] is True
    single = getattr(torch.optim, name)(plain, lr=0.1, foreach=False)
    for parameters, one in ((weights, optimizer), (plain, single)):
        for _ in range(3):
            one.zero_grad()
            sum((p**3).sum() for p in parameters).backward()
            one.step()
    for one, other in zip(weights, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def quadratic(parameter):
    parameter.grad = (parameter.detach() - torch.arange(4.0)) * torch.tensor([1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize("began_on", ["a CPU", "a GPU"])
def test_another_device_goes_on_with_kernels_of_its_own(monkeypatch, began_on):
    """Adagrad updates in one kernel on a CPU only: on a GPU that would be an error."""
    weights = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    fused = create_optimizer("Adagrad", [weights[0]], 0.1)
    monkeypatch.setattr(optimisers, "_FUSED", {})
    plain = create_optimizer("Adagrad", [weights[1]], 0.1)
    first, second = (fused, plain) if began_on == "a CPU" else (plain, fused)
    quadratic(first.param_groups[0]["params"][0])
    first.step()
    state = copy.deepcopy(first.state_dict())
    kept = state["param_groups"][0]["fused"]
    optimisers.load_state(second, state)
    assert fused.param_groups[0]["fused"]
    assert not plain.param_groups[0]["fused"]
    assert state["param_groups"][0]["fused"] == kept
    (own,) = second.param_groups[0]["params"]
    own.data.copy_(first.param_groups[0]["params"][0].detach())
    for one in (first, second):
        quadratic(one.param_groups[0]["params"][0])
        one.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_ranger_is_lookahead_around_rectified_adam():
    weight = nn.Parameter(torch.ones(4))
    ranger = Ranger([weight], lr=0.1, weight_decay=0.1, k=3)
    fast, slow = nn.Parameter(torch.ones(4)), torch.ones(4)
    radam = torch.optim.RAdam(
        [fast], lr=0.1, betas=(0.95, 0.999), eps=1e-5, weight_decay=0.1, decoupled_weight_decay=True
    )
    for step in range(1, 14):
        quadratic(weight)
        ranger.step()
        quadratic(fast)
        radam.step()
        if step % 3 == 0:
            slow = slow + 0.5 * (fast.detach() - slow)
            with torch.no_grad():
                fast.copy_(slow)
        torch.testing.assert_close(weight, fast, rtol=1e-6, atol=1e-7)


def test_ranger_continues_to_the_same_bits():
    whole = nn.Parameter(torch.ones(4))
    optimizer = Ranger([whole], lr=0.1)
    for step in range(16):
        if step == 8:
            state = copy.deepcopy(optimizer.state_dict())
            part = nn.Parameter(whole.detach().clone())
        quadratic(whole)
        optimizer.step()
    resumed = Ranger([part], lr=0.3, k=2)
    resumed.load_state_dict(state)
    for _ in range(8, 16):
        quadratic(part)
        resumed.step()
    assert torch.equal(whole, part)


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ParameterError, match="AdamW"):
        create_optimizer("Lion", [], 0.1)
    with pytest.raises(ParameterError, match="epoch_lin_decay"):
        LearningRateSchedule("step", 3, 0.1)
    with pytest.raises(ParameterError, match="CrossEntropyLoss"):
        create_loss("Hinge")


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 20])
def test_epoch_lin_decay_is_upstreams_multi_step_schedule(epochs):
    n = max(1, int(0.3 * epochs))
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, milestones=list(range(epochs - n, epochs)), gamma=0.01 ** (1 / n)
    )
    schedule = LearningRateSchedule("epoch_lin_decay", epochs, 0.01)
    for epoch in range(epochs):
        assert schedule.factor(epoch, 0.5) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        reference.step()


def test_batch_lin_decay_is_flat_then_geometric():
    schedule = LearningRateSchedule("batch_lin_decay", 10, 1e-2)
    assert schedule.factor(0, 0.0) == schedule.factor(6, 0.999) == 1.0
    assert schedule.factor(8, 0.5) == pytest.approx(0.1)
    assert schedule.factor(9, 1.0) == pytest.approx(0.01)
    exponential = LearningRateSchedule("batch_exp_decay", 10, 1e-2)
    assert all(exponential.factor(epoch, 0.4) == schedule.factor(epoch, 0.4) for epoch in range(12))


def test_w27_batch_cosine_warmup_works_for_one_epoch():
    schedule = LearningRateSchedule("batch_cosine_warmup", 10, 0.1)
    assert [schedule.factor(0, x) for x in (0.0, 0.5)] == pytest.approx([0.1, 0.55])
    assert schedule.factor(1, 0.0) == 1.0
    assert schedule.factor(5, 0.5) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    short = LearningRateSchedule("batch_cosine_warmup", 1, 0.1)
    assert short.factor(0, 0.0) == pytest.approx(0.1)
    assert short.factor(0, 0.1) == pytest.approx(1.0)
    assert short.factor(0, 1.0) == pytest.approx(0.1)


@given(
    name=st.sampled_from(SCHEDULES),
    epochs=st.one_of(st.integers(0, 1000), st.floats(0, 100)),
    decay=st.floats(1e-6, 1.0),
    epoch=st.integers(0, 2000),
    fraction=st.floats(0, 1),
)
def test_w27_a_factor_is_finite_and_within_its_ends(name, epochs, decay, epoch, fraction):
    factor = LearningRateSchedule(name, epochs, decay).factor(epoch, fraction)
    assert decay * (1 - 1e-9) <= factor <= 1 + 1e-9
    assert epoch < epochs + 1 or factor == pytest.approx(decay)


def test_loss_is_per_jet_and_weighted_by_class():
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    plain = create_loss(LOSSES[0])(logits, target)
    weighted = create_loss(LOSSES[0], torch.tensor([1.0, 0.5, 0.0]))(logits, target)
    assert plain.shape == (5,)
    assert torch.allclose(weighted, plain * torch.tensor([1, 0.5, 0, 0.5, 1]))


def test_log_cosh_and_quantiles():
    x = torch.tensor([0.0, 1.5, -1.5, 300.0, -300.0], dtype=torch.float64)
    expected = torch.cat([torch.cosh(x[:3]).log(), x[3:].abs() - math.log(2)])
    torch.testing.assert_close(log_cosh(x), expected)
    values, grid = torch.randn(4001, dtype=torch.float64), torch.linspace(-3, 3, 601, dtype=torch.float64)
    for level in (0.16, 0.84):
        best = grid[pinball(values[:, None] - grid, level).sum(0).argmin()]
        assert abs(best - values.quantile(level)) <= 0.02


def test_w24_a_multi_task_loss_is_the_sum_of_its_parts():
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    values, wanted = torch.randn(5, 4), torch.randn(5, 4)
    weights = torch.tensor([1.0, 0.5, 0.25])
    losses = create_loss("CrossEntropyLogCosh", weights)(logits, target, values, wanted)
    torch.testing.assert_close(losses.classes, create_loss("CrossEntropyLoss", weights)(logits, target))
    torch.testing.assert_close(losses.total, losses.classes + losses.regression)
    by_hand = log_cosh(values - wanted)[:, [0, 3]].sum(1)
    by_hand = by_hand + pinball(wanted[:, 1] - values[:, 1], 0.16) + pinball(wanted[:, 2] - values[:, 2], 0.84)
    torch.testing.assert_close(losses.regression, by_hand)
    hlt = create_loss("CrossEntropyLogCoshHLT")(logits, target, values[:, :1], wanted[:, :1])
    torch.testing.assert_close(hlt.regression, log_cosh(values - wanted)[:, 0])


@pytest.mark.parametrize(
    ("loss", "outputs", "message"),
    [
        (
            "CrossEntropyLoss",
            ("a",),
            r"regression outputs of model M \(a\): take --loss-function CrossEntropyLogCoshHLT$",
        ),
        ("CrossEntropyLogCoshHLT", ("a", "b", "c", "d"), r"does not fit .*: take --loss-function CrossEntropyLogCosh$"),
        ("CrossEntropyLogCosh", (), r"which model M does not have: take --loss-function CrossEntropyLoss$"),
        (
            "CrossEntropyLoss",
            ("a", "b"),
            r"no --loss-function fits the 2 .* of model M \(a, b\): CrossEntropyLogCosh fits 4",
        ),
    ],
)
def test_loss_and_model_must_fit(loss, outputs, message):
    with pytest.raises(ParameterError, match=message):
        check_loss(loss, "M", outputs)
    check_loss("CrossEntropyLoss", "M", ())


def test_class_weights_are_inverse_to_abundance():
    histogram = np.array([[[10, 20]], [[10, 0]], [[5, 5]], [[0, 0]]], np.float32)
    classes = (("b", ("isB", "isBB")), ("c", ("isC",)), ("tau", ("isTau",)))
    weights = class_weights(histogram, ("isB", "isBB", "isC", "isTau"), classes)
    assert weights.tolist() == pytest.approx([0.25, 1.0, 0.0])


def test_class_weights_sum_the_labels_over_all_bins():
    histogram = np.zeros((5, 2, 3), np.float32)
    histogram[0, 0, 0], histogram[1, 1, 2], histogram[2, 0, 1], histogram[3, 1, 1] = 100, 300, 50, 200
    # Abundances 400, 50, 200: total / abundance, over the largest.
    assert class_weights(histogram, SCHEMA.truths, CLASSES).tolist() == pytest.approx([0.125, 1.0, 0.25])


def test_class_weight_of_an_empty_class_is_zero():
    histogram = np.zeros((5, 1, 1), np.float32)
    assert class_weights(histogram, SCHEMA.truths, CLASSES).tolist() == [0, 0, 0]
    histogram[0], histogram[2] = 10, 30
    assert class_weights(histogram, SCHEMA.truths, CLASSES).tolist() == pytest.approx([1.0, 1 / 3, 0.0])
