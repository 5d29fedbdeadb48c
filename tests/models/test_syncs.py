"""No operator of forward and backward makes a GPU wait: all models and losses, attacks included, two ways.

On torch's `meta` device nothing has a value, so that reading one, or a size that depends on one, is an error; it takes
the branches of a GPU. On a CPU a mode sees each operator, those of the backward pass too.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bhive_mltf.attacks import options
from bhive_mltf.attacks.attack import pick_attack
from bhive_mltf.attacks.options import NOMINAL, AttackOptions
from bhive_mltf.models import layers, layout, registry
from bhive_mltf.training.choices import LOSSES, REGRESSION_LOSSES
from bhive_mltf.training.losses import create_loss, jet_losses
from bhive_mltf.training.metrics import jet_sums
from tests.helpers.model_factory import CONFIGS, jets, small
from tests.helpers.padded_part import logits_of_tagger

META = torch.device("meta")
COUNTS = [3, 9, 0, 1, 30]
# their result has a size, or is a number, that only the device knows
WAITING = {
    *("nonzero", "_local_scalar_dense", "item", "masked_select", "unique", "_unique2", "unique_dim", "is_nonzero"),
    *("equal", "unique_consecutive", "bincount", "histc", "nonzero_static"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# of each kind of network the one that attacks take least time on; the others are among the long tests
ONE_OF_EACH = {"UDeepJetTransformerHLT", "ParticleTransformer2_JetClass", "ParticleNet_InProHLT", "UParT_v0"}
ATTACKS = {"pgd": {"magnitude": 0.1, "iterations": 2}, "jetfool": {"iterations": 2}, "optimizer": {"iterations": 2}}


class Operators(TorchDispatchMode):
    """Counts operators that would wait, and copies from the host."""

    def __init__(self):
        super().__init__()
        self.waiting, self.copies = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.split("::")[1]
        if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.waiting[name] += 1
        if name in INDEXING and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]):
            self.waiting[f"{name} by a mask"] += 1
        out = function(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if len({t.device.type for t in tensors if t.dim()}) > 1:
            self.copies[name] += 1
        return out


@pytest.fixture
def no_autocast(monkeypatch):
    """Which `meta` does not have."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())


class Made(TorchFunctionMode):
    """Notes tensors that are made of numbers of the host on another device, which waits there."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type != "cpu":
            self.found.append(function.__name__)
        return function(*args, **kwargs)


def loss_of(model):
    levels = len(model.regression)
    return next((name for name, own in REGRESSION_LOSSES.items() if len(own) == levels), "CrossEntropyLoss")


def made_loss(model, device="cpu"):
    """With class weights, which is more than without."""
    return create_loss(loss_of(model), torch.ones(len(model.classes), device=device))


def step(model, batch, loss):
    logits, losses = jet_losses(loss, model, model(batch), batch)
    weight = batch.weight * (batch.target >= 0)
    jet_sums(losses, logits, batch.target, weight)
    ((losses.total * weight).sum() / batch.global_size).backward()


def inputs(model):
    batch = jets(model, COUNTS)
    return model.counted(batch)


def test_the_mode_sees_what_would_wait():
    values = torch.randn(4, requires_grad=True)
    with Operators() as seen:
        chosen = values[values.detach() > 0]
        chosen.sum().detach().item()
        chosen.sum().backward()
    assert seen.waiting["index by a mask"] or seen.waiting["nonzero"]
    assert seen.waiting["_local_scalar_dense"]
    with Operators() as seen, Made() as made:
        torch.zeros(2, device=META) + torch.ones(2).to(META) + torch.tensor([1.0, 2.0], device=META)
    assert sum(seen.copies.values()) == 1
    assert made.found == ["tensor"]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device=META).nonzero()


def test_a_step_waits_for_nothing(name):
    model = small(name, dropout=0.1).train()
    batch, loss = inputs(model), made_loss(model)
    with Operators() as seen:
        step(model, batch, loss)
    assert not seen.waiting


def test_all_losses_and_attacks_are_among_those_looked_at():
    assert {loss_of(small(name)) for name in CONFIGS} == set(LOSSES)
    assert {NOMINAL, *ATTACKS} == set(options.ATTACKS)
    assert set(CONFIGS) == set(registry.names())


@pytest.mark.usefixtures("no_autocast")
def test_the_branches_of_a_gpu_wait_for_nothing(name, monkeypatch):
    model = small(name, dropout=0.1).train()
    batch, loss = inputs(model), made_loss(model, META)
    # one message to the device per forward, of pinned memory on a GPU
    sent = []
    real = layout._to_device
    monkeypatch.setattr(layout, "_to_device", lambda *args: (sent.append(args), real(*args))[1])
    if model.laid_out:
        model(batch)
    expected = len(sent)
    assert expected == model.laid_out
    sent.clear()
    model.to(META)
    placed = batch.map(lambda values: values.to(META))
    with Operators() as seen, Made() as made:
        step(model, placed, loss)
    assert not seen.waiting
    assert not made.found
    assert len(sent) == expected <= 1
    assert sum(seen.copies.values()) == expected
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["ParticleTransformer_JetClass", "ParticleTransformer", "DeepJetTransformer"])
def test_cudnn_s_attention_is_never_asked(name, monkeypatch):
    """G2: it has no gradient of the bias, and is what torch would take for half types on Hopper."""
    allowed, real = set(), layers.attend
    # Before 2.6 torch's own default is not to take it.
    default = torch.backends.cuda.cudnn_sdp_enabled()

    def attend(*args):
        cuda = torch.backends.cuda
        kinds = (cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled, cuda.cudnn_sdp_enabled)
        allowed.add(tuple(kind() for kind in kinds))
        return real(*args)

    monkeypatch.setattr(layers, "attend", attend)
    model = small(name).to(META)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    model(inputs(model).map(lambda values: values.to(META)))
    if name == "ParticleTransformer_JetClass":
        real_model = small(name)
        logits_of_tagger(real_model, inputs(real_model))
    assert allowed == {(False, True, True, False)}
    assert torch.backends.cuda.cudnn_sdp_enabled() == default


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("name", ["ParticleTransformer_JetClass", "ParticleTransformer", "ParticleTransformer2"])
def test_biases_of_pairs_lie_as_cuda_s_kernel_wants_them(name, monkeypatch):
    """G1: it refuses a bias whose last axis is not dense, and copies one whose rows are not aligned to 16 bytes."""
    model = small(name).to(META)
    seen, real = [], layers.attend
    monkeypatch.setattr(layers, "attend", lambda *args: (seen.append(args), real(*args))[1])
    model(inputs(model).map(lambda values: values.to(META)))
    of_pairs = [(q, bias) for q, _, _, bias, _ in seen if q.shape[2] > 1]
    assert of_pairs
    for q, bias in of_pairs:
        assert bias.dtype == q.dtype
        assert bias.stride(-1) == 1
        assert all(step % layout.MULTIPLE == 0 for step in bias.stride()[:-1])
        assert bias.shape[2] == bias.shape[3] == q.shape[2]


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize(
    "name", [name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.long) for name in CONFIGS]
)
@pytest.mark.parametrize(
    "attack",
    ["pgd", pytest.param("jetfool", marks=pytest.mark.long), pytest.param("optimizer", marks=pytest.mark.long)],
)
def test_attacks_wait_for_nothing_and_send_the_layout_only(name, attack):
    model = small(name).train()
    batch = inputs(model).map(lambda values: values.to(META))
    model.to(META)
    wanted = AttackOptions(attack, individual_factors=True, **ATTACKS[attack])
    factors = {group.name: np.ones(len(group.columns)) for group in model.inputs.groups}
    moving = pick_attack(wanted, model, model.inputs, factors)
    moving(batch)
    with Operators() as seen, Made() as made:
        moving(batch)
    assert not seen.waiting
    assert not made.found
    # one per forward
    assert sum(seen.copies.values()) == (2 if model.laid_out else 0)


def test_a_batch_without_counts_is_counted_once():
    """Made by hand, its mask has to be read: the only wait, which batches of the loader do not have."""
    model = small("ParticleTransformer_JetClass")
    batch = jets(model, COUNTS)
    assert batch.groups["cpf"].counts is None
    with Operators() as seen:
        model(batch)
    expected = F.pad(batch.groups["cpf"].mask.sum(1), (0, 0)).tolist()
    assert model.counted(batch).groups["cpf"].counts.tolist() == expected
    assert not seen.waiting
    assert replace(batch, groups=model.counted(batch).groups).groups["cpf"].counted().counts is not None
