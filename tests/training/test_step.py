"""One step: its loss, the norm of its gradient, and what comes to the host."""

import pytest
import torch
from torch.nn import functional as F

from bhive_mltf.attacks.attack import pick_attack
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training.losses import create_loss
from bhive_mltf.training.optim.optimisers import create_optimizer
from bhive_mltf.training.step import Stepper
from tests.helpers import standin

WEIGHTS = torch.tensor([1.0, 0.5, 0.01])


def stepper(directory, optimizer="SGD", weights=None, **values):
    torch.manual_seed(1)
    made, model = standin.plan(directory, **values), standin.Tiny()
    return Stepper(
        made,
        World(),
        model,
        create_loss("CrossEntropyLoss", weights),
        create_optimizer(optimizer, model.parameters(), 1.0),
    )


def movement(directory, **values):
    """Length of a step of plain gradient descent with learning rate 1: the norm of the gradient."""
    one = stepper(directory, **values)
    before = [p.detach().clone() for p in one.model.parameters()]
    one.train(standin.batch(20), 0, 1.0)
    moved = [(p.detach() - b).square().sum() for p, b in zip(one.model.parameters(), before, strict=True)]
    return torch.stack(moved).sum().sqrt().item()


def test_w25_gradients_are_clipped_when_asked(tmp_path):
    free = movement(tmp_path)
    assert movement(tmp_path, clip_norm=0.01) == pytest.approx(0.01, rel=1e-3)
    assert movement(tmp_path, clip_norm=100.0) == pytest.approx(free, rel=1e-5)
    assert movement(tmp_path, clip_norm=0.0) == free


def test_w25_the_default_is_upstreams(tmp_path, monkeypatch):
    norms = []
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: norms.append(norm) or torch.ones(())
    )
    movement(tmp_path)
    assert norms == []
    movement(tmp_path, mixed_precision=True)
    assert norms == [1.0]
    movement(tmp_path, mixed_precision=True, clip_norm=0.0)
    assert norms == [1.0]


def test_w25_class_weights_weight_jets_and_the_mean_is_over_jets(tmp_path):
    one, jets = stepper(tmp_path, weights=WEIGHTS), standin.batch(20)
    logits = one.model(jets).detach()
    loss, _ = one.backward(jets)
    expected = (F.cross_entropy(logits, jets.target, reduction="none") * WEIGHTS[jets.target]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("values", [{}, {"clip_norm": 1.0}, {"attack": "pgd", "attack_magnitude": 0.1}])
def test_w25_no_number_comes_to_the_host_in_a_step(tmp_path, monkeypatch, values):
    one, jets = stepper(tmp_path, "AdamW", **values), standin.batch(20)
    one.attack = pick_attack(one.plan.attack_options, one.model, standin.INPUTS)
    one.train(jets, 0, 1.0)
    read = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "cpu"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda *args, _name=name, _original=original, **kwargs: (read.append(_name), _original(*args, **kwargs))[1],
        )
    one.train(jets, 1, 1.0)
    monkeypatch.undo()
    assert read == []
