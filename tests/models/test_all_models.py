"""What holds for every model of the registry."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from bhive_mltf.config import load
from bhive_mltf.errors import ModelError
from bhive_mltf.models import registry
from bhive_mltf.models.base import count_parameters
from tests.models.factory import CONFIGS, SMALL, jets, small

COUNTS = [3, 5, 0, 1, 2]


def step(model, batch):
    """Logits and gradients of one training step."""
    model.zero_grad()
    logits = model(batch)
    (F.cross_entropy(logits, batch.target, reduction="sum") / max(len(batch), 1)).backward()
    return logits.detach(), {key: p.grad for key, p in model.named_parameters()}


def test_every_model_is_tried():
    assert tuple(sorted(CONFIGS)) == registry.names()


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        ("DeepJet", "DeepJet_AK4", 276_552),
        ("DeepJet", "offline_run3", 276_552),
        ("DeepJetHLT", "hlt_run3", 251_690),
        ("ParticleTransformer2", "part_run3", 1_115_047),
        ("ParticleTransformer2_JetClass", "jet_class", 2_667_805),
        ("ParticleTransformer_JetClass", "jet_class", 2_143_486),
    ],
)
def test_number_of_parameters_on_the_shipped_configs(model, config, expected):
    assert count_parameters(registry.create(model, load(config))) == expected


def test_w33_every_parameter_gets_a_gradient(name):
    model = small(name, dropout=0.1).train()
    logits, gradients = step(model, jets(model, COUNTS))
    assert logits.shape == (5, len(model.inputs.classes))
    assert [key for key, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_w33_most_parameters_change_the_loss(name):
    """Only offsets that a batch norm takes out again may have no influence."""
    model = small(name).double().train()
    _, gradients = step(model, jets(model, [4, 5, 3, 6, 2, 5]))
    without = {key for key, gradient in gradients.items() if gradient.abs().max() < 1e-14}
    assert {key.rsplit(".", 1)[1] for key in without} <= {"bias"}
    assert all("pair_embedding" in key for key in without), without


@pytest.mark.parametrize("counts", [[0, 0, 0], [1], [0], [1, 1], [2]])
@pytest.mark.parametrize("training", [True, False])
def test_w34_jets_without_or_with_one_candidate(name, counts, training):
    model = small(name).train(training)
    logits, gradients = step(model, jets(model, counts))
    assert logits.isfinite().all()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert all(buffer.isfinite().all() for key, buffer in model.named_buffers() if "standardise" not in key)


def test_w34_an_empty_jet_does_not_touch_its_neighbours(name):
    model = small(name).eval()
    alone, together = jets(model, [4, 3]), jets(model, [4, 3, 0])
    torch.testing.assert_close(model(together)[:2], model(alone))


@pytest.mark.parametrize("training", [True, False])
def test_a_rank_without_jets_contributes_zero_gradients(name, training):
    model = small(name).train(training)
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    logits, gradients = step(model, jets(model, [], length=4))
    assert logits.shape == (0, len(model.inputs.classes))
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())
    for key, buffer in model.named_buffers():
        if "num_batches" not in key:
            assert torch.equal(buffer, before[key]), key


def test_float64_is_used_throughout(name):
    """float64 agrees with float32 to float32's precision, and a tiny change of the input is not lost."""
    single = small(name).eval()
    double = copy.deepcopy(single).double()
    batch = jets(single, COUNTS)
    reference = double(batch)
    assert reference.dtype == torch.float64
    torch.testing.assert_close(single(batch).double(), reference, rtol=1e-3, atol=1e-4)
    exact = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    assert torch.equal(double(exact), reference)
    moved = exact.map(lambda t: t * (1 + 1e-10) if t.is_floating_point() else t)
    assert not torch.equal(double(moved), reference)


def test_state_dict_round_trip(name):
    model = small(name).train()
    step(model, jets(model, COUNTS))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = registry.create(name, load(CONFIGS[name]), **SMALL[name])
    other.load_state_dict(torch.load(file, weights_only=True))
    batch = jets(model, COUNTS, seed=2)
    assert torch.equal(model.eval()(batch), other.eval()(batch))


def test_same_seed_same_bits(name):
    def run():
        model = small(name, dropout=0.1).train()
        torch.manual_seed(3)
        return step(model, jets(model, COUNTS))

    (first, gradients), (second, again) = run(), run()
    assert torch.equal(first, second)
    assert all(torch.equal(gradients[key], again[key]) for key in gradients)


def test_bfloat16_autocast(name):
    model = small(name).train()
    batch = jets(model, COUNTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch)
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_evaluation_changes_no_buffer(name):
    model = small(name).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model(jets(model, COUNTS))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_evaluation_does_not_depend_on_the_other_jets(name):
    model = small(name).eval().double()
    batch = jets(model, [4, 6, 2])
    alone = model(jets(model, [4], length=4))
    torch.testing.assert_close(model(batch)[:1], alone, rtol=1e-9, atol=1e-9)


def test_a_batch_made_for_another_model_is_refused(name):
    model = small(name)
    other = small("DeepJetHLT" if name != "DeepJetHLT" else "DeepJet")
    with pytest.raises(ModelError, match=r"the batch does not hold the group"):
        model(jets(other, [2]))


TRANSFORMERS = [name for name in CONFIGS if "Transformer" in name]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_longer_padding_does_not_change_the_logits(name):
    model = small(name).eval().double()
    counts = [3, 0, 5, 1]
    short = model(jets(model, counts, length=5))
    torch.testing.assert_close(model(jets(model, counts, length=19)), short, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("training", [True, False])
def test_order_of_candidates_does_not_matter(name, training):
    model = small(name).double().train(training)
    batch = jets(model, [6, 4, 5])
    groups = {}
    for key, group in batch.groups.items():
        order = torch.randperm(group.mask.shape[1], generator=torch.Generator().manual_seed(5))
        groups[key] = replace(
            group,
            features=group.features[:, order],
            mask=group.mask[:, order],
            four_vectors=group.four_vectors[:, order],
        )
    torch.testing.assert_close(model(replace(batch, groups=groups)), model(batch), rtol=1e-8, atol=1e-8)
