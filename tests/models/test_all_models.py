"""What holds for every model of the registry."""

from __future__ import annotations

import copy
import io
import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from bhive_mltf.errors import ModelError
from bhive_mltf.models import registry
from bhive_mltf.models.base import count_parameters
from tests.helpers.model_factory import CONFIGS, SMALL, jets, load, logits_of, small

COUNTS = [3, 5, 0, 1, 2]
# offsets in front of a batch norm, or of a softmax
NORMED_AGAIN = re.compile(
    r"pair_embedding|embeddings\..*norm.*\.bias|dense\.norm\.bias|pooling\.score\.bias|^norm_in\.bias"
)


def step(model, batch):
    """Logits and gradients of one training step; regression outputs are pulled to their targets."""
    model.zero_grad()
    output = model(batch)
    loss = F.cross_entropy(logits_of(output), batch.target, reduction="sum")
    if model.regression:
        loss = loss + (output.regression - model.regression_targets(batch)).square().sum()
    (loss / max(len(batch), 1)).backward()
    return logits_of(output).detach(), {key: p.grad for key, p in model.named_parameters()}


def test_every_model_is_tried():
    assert tuple(sorted(CONFIGS)) == registry.names()


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        ("DeepJet", "DeepJet_AK4", 276_552),
        ("DeepJet", "offline_run3", 276_552),
        ("DeepJetHLT", "hlt_run3", 251_690),
        ("MoDJet", "mod_offline_run3", 277_856),
        ("DeepJetTransformer", "part_run3", 867_137),
        ("DeepJetTransformerHLT", "hlt_run3", 849_833),
        ("GlobalDeepJetTransformerHLT", "hlt_run3", 849_833 + 4 * 6 + 2 * 4),
        ("UDeepJetTransformerHLT", "hlt_run3", 849_833 + 129),
        ("ParticleTransformer", "part_run3", 859_064),
        ("ParticleTransformerHLT", "hlt_run3", 841_270),
        ("GlobalParticleTransformerHLT", "hlt_run3", 841_270 + 4 * 6 + 2 * 4),
        ("UParT_v0", "UParT_v0_run3", 859_580),
        ("UParT_v0", "part_run3_lt", 859_580 + 130 * (54 - 33)),
        ("ParticleTransformer2", "part_run3", 1_115_047),
        ("ParticleTransformer2_LT", "part_run3_lt", 1_137_620),
        ("ParticleTransformer2_LT_tau", "part_run3_lt", 1_137_620),
        ("ParticleTransformer2_LT_tau_all", "part_run3_lt", 1_137_620 - 129),
        ("ParticleTransformer2_LT_tau_Big", "part_run3_lt", 4_915_540),
        ("ParticleTransformer2_LT_tau_Huge", "part_run3_lt", 8_476_372),
        ("ParticleNet_InPro", "part_run3", 984_416),
        ("ParticleNet_InProHLT", "hlt_run3", 849_610),
        ("UParticleNet_InProHLT", "hlt_run3", 849_610 + 129),
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
    """Only offsets that a batch norm or a softmax takes out again may have no influence."""
    model = small(name).double().train()
    _, gradients = step(model, jets(model, [4, 5, 3, 6, 2, 5]))
    without = {key for key, gradient in gradients.items() if gradient.abs().max() < 1e-14}
    assert {key.rsplit(".", 1)[1] for key in without} <= {"bias"}
    assert all(NORMED_AGAIN.search(key) for key in without), without


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
    torch.testing.assert_close(logits_of(model(together))[:2], logits_of(model(alone)))


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
    reference = logits_of(double(batch))
    assert reference.dtype == torch.float64
    torch.testing.assert_close(logits_of(single(batch)).double(), reference, rtol=1e-3, atol=1e-4)
    exact = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    assert torch.equal(logits_of(double(exact)), reference)
    moved = exact.map(lambda t: t * (1 + 1e-10) if t.is_floating_point() else t)
    assert not torch.equal(logits_of(double(moved)), reference)


def test_state_dict_round_trip(name):
    model = small(name).train()
    step(model, jets(model, COUNTS))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = registry.create(name, load(CONFIGS[name]), **SMALL[name])
    other.load_state_dict(torch.load(file, weights_only=True))
    batch = jets(model, COUNTS, seed=2)
    assert torch.equal(logits_of(model.eval()(batch)), logits_of(other.eval()(batch)))


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
        output = model(batch)
    sum(part.float().square().sum() for part in (output if model.regression else [output])).backward()
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
    torch.testing.assert_close(logits_of(model(batch))[:1], logits_of(alone), rtol=1e-9, atol=1e-9)


def test_a_batch_made_for_another_model_is_refused(name):
    model = small(name)
    other = small("DeepJet" if CONFIGS[name] == "hlt_run3" else "DeepJetHLT")
    with pytest.raises(ModelError, match=r"the batch does not hold the group"):
        model(jets(other, [2]))


TRIMMED = [name for name in CONFIGS if registry.model_class(name).padding == "longest"]


@pytest.mark.parametrize("name", TRIMMED)
@pytest.mark.parametrize("training", [True, False])
def test_w34_longer_padding_does_not_change_the_logits(name, training):
    """Nor the statistics of batch norms, but for the published ParT, whose input norm sees padded zeros."""
    if training and name == "ParticleTransformer_JetClass":
        pytest.skip("its input norm sees padded zeros, as in the published network")
    counts = [3, 0, 5, 1]
    one, other = small(name).double().train(training), small(name).double().train(training)
    short, long = one(jets(one, counts, length=5)), other(jets(other, counts, length=19))
    torch.testing.assert_close(logits_of(long), logits_of(short), rtol=1e-9, atol=1e-9)
    for (key, buffer), again in zip(one.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(again, buffer, rtol=1e-9, atol=1e-9, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", TRIMMED)
def test_w34_padding_is_hidden_in_half_precision_too(name):
    """Where a large negative number in place of a mask is infinite, or not large."""
    model = small(name).eval()
    counts = [3, 0, 5, 1]
    with torch.autocast("cpu", dtype=torch.float16):
        short, long = (logits_of(model(jets(model, counts, length=length))) for length in (5, 19))
    assert long.isfinite().all()
    torch.testing.assert_close(long, short, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", TRIMMED)
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
            four_vectors=None if group.four_vectors is None else group.four_vectors[:, order],
        )
    moved = logits_of(model(replace(batch, groups=groups)))
    torch.testing.assert_close(moved, logits_of(model(batch)), rtol=1e-8, atol=1e-8)


def test_w34_values_in_padded_places_are_not_looked_at(name):
    model = small(name).eval().double()
    if model.padding == "configured":
        pytest.skip("its recurrent part reads padded candidates")
    batch = jets(model, [3, 0, 5], length=7)
    groups = {
        key: replace(group, features=group.features.masked_fill(~group.mask[..., None], 1e3))
        for key, group in batch.groups.items()
    }
    torch.testing.assert_close(logits_of(model(replace(batch, groups=groups))), logits_of(model(batch)))
