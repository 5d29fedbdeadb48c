"""Weights under B-Hive's names: all of them, once each, there and back."""

from __future__ import annotations

import pytest
import torch

from bhive_mltf.errors import ModelError
from bhive_mltf.models import registry
from bhive_mltf.models.upstream_weights import convert
from tests.helpers.model_factory import CONFIGS, jets, load, logits_of, small

STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "tau_indices")
# Trainable parameters that B-Hive's classes report, layers included that they never use.
THEIRS = {
    "DeepJet": 276_592,
    "DeepJetHLT": 251_722,
    "ParticleTransformer": 859_064,
    "ParticleTransformer2": 1_115_047,
    "ParticleTransformer2_LT": 1_137_620,
    "ParticleTransformer2_LT_tau_Big": 4_915_540,
    "UParT_v0": 859_580 + 199_296,
    "ParticleTransformerHLT": 841_270 + 199_296,
    "DeepJetTransformer": 867_137 + 264_576,
    "DeepJetTransformerHLT": 849_833 + 264_576,
    "ParticleNet_InPro": 984_416,
}


@pytest.mark.parametrize("name", THEIRS)
def test_number_of_parameters_is_that_of_upstreams_class(name):
    found = convert.to_upstream(name, registry.create(name, load(CONFIGS[name])).state_dict())
    assert sum(value.numel() for key, value in found.items() if not key.endswith(STATISTICS)) == THEIRS[name]


@pytest.mark.parametrize("name", sorted(convert.FAMILIES))
def test_there_and_back_is_the_same_model(name):
    model = small(name).eval()
    theirs = convert.to_upstream(name, model.state_dict())
    assert convert.is_upstreams(theirs)
    assert not convert.is_upstreams(model.state_dict())
    back = convert.to_ours(name, theirs)
    other = small(name).eval()
    torch.manual_seed(1)
    for value in other.parameters():
        torch.nn.init.normal_(value)
    other.load_state_dict(back)
    batch = jets(model, [3, 1])
    assert torch.equal(logits_of(model(batch)), logits_of(other(batch)))


def test_names_and_shapes_of_each_kind_of_layer():
    theirs = convert.to_upstream("ParticleTransformer", small("ParticleTransformer").state_dict())
    expected = {
        "InputProcess.cpf_bn0.running_mean": (16,),
        "InputProcess.vtx_conv3.lin.weight": (16, 16, 1),
        "pair_embed.embed.5.weight": (12, 12, 1),
        "Encoder.layers.0.self_attn.in_proj_weight": (48, 16),
        "CLS_EncoderLayer1.norm0b.bias": (16,),
        "cls_token": (1, 1, 16),
        "Linear.weight": (6, 16),
    }
    assert {name: tuple(theirs[name].shape) for name in expected} == expected
    net = convert.to_upstream("ParticleNet_InPro", small("ParticleNet_InPro").state_dict())
    assert net["pn.edge_convs.1.convs.0.weight"].shape[2:] == (1, 1)


def test_unused_layers_are_made_up_and_left_out():
    state = small("DeepJetTransformer").state_dict()
    theirs = convert.to_upstream("DeepJetTransformer", state)
    assert torch.equal(theirs["EncoderLayer.ffn.dense_1.bias"], theirs["Encoder.layers.0.ffn.dense_1.bias"])
    theirs["EncoderLayer.ffn.dense_1.bias"] += 1
    assert list(convert.to_ours("DeepJetTransformer", theirs)) != []
    deepjet = convert.to_upstream("DeepJetHLT", small("DeepJetHLT").state_dict())
    assert deepjet["InputProcess.vtx_conv.3.bn.running_var"].tolist() == [1.0] * 8


def test_quantiles_of_upart_change_places():
    """B-Hive's pinball loss has the sign by which its 16 % output learns the 84 % quantile."""
    state = small("UParT_v0").state_dict()
    theirs = convert.to_upstream("UParT_v0", state)
    places = list(registry.entry("UParT_v0").classes)
    low = len(places) + registry.entry("UParT_v0").regression.index("pt_q16")
    assert torch.equal(theirs["Linear.weight"][low], state["head.weight"][low + 1])
    assert torch.equal(theirs["Linear.weight"][low + 1], state["head.weight"][low])
    assert torch.equal(convert.to_ours("UParT_v0", theirs)["head.weight"], state["head.weight"])


@pytest.mark.parametrize("theirs", [True, False])
@pytest.mark.parametrize("name", ["DeepJet", "UParT_v0", "ParticleTransformer2", "ParticleNet_InProHLT"])
def test_the_model_is_found_by_the_names(name, theirs):
    state = small(name).state_dict()
    assert convert.model_of(convert.to_upstream(name, state) if theirs else state) == name


def test_weights_of_another_model_are_refused():
    theirs = convert.to_upstream("ParticleTransformer2", small("ParticleTransformer2").state_dict())
    message = r"not those of B-Hive's ParticleTransformer: .* left over and .* more are missing: name the model"
    with pytest.raises(ModelError, match=message):
        convert.to_ours("ParticleTransformer", theirs)


def test_left_over_and_missing_names_are_in_the_sentence():
    theirs = convert.to_upstream("DeepJet", small("DeepJet").state_dict())
    theirs["Linear2.weight"] = theirs.pop("Linear.weight")
    message = r"Linear2.weight is left over and Linear.weight is missing"
    for convert_it in (lambda: convert.to_ours("DeepJet", theirs), lambda: convert.model_of(theirs)):
        with pytest.raises(ModelError, match=message):
            convert_it()


def test_another_number_of_classes_is_no_known_model():
    theirs = convert.to_upstream("DeepJet", small("DeepJet").state_dict())
    theirs |= {name: theirs[name][:4] for name in ("Linear.weight", "Linear.bias")}
    with pytest.raises(ModelError, match="like those of DeepJet, but for 4 outputs where that has 6"):
        convert.model_of(theirs)


def test_a_kernel_of_another_size_is_refused():
    theirs = convert.to_upstream("DeepJet", small("DeepJet").state_dict())
    theirs["InputProcess.cpf_conv.0.lin.weight"] = torch.zeros(64, 16, 3)
    with pytest.raises(ModelError, match=r"conv.0.lin.weight has the shape \(64, 16, 3\), but a kernel of size 1"):
        convert.to_ours("DeepJet", theirs)


@pytest.mark.parametrize("name", ["GlobalDeepJetTransformerHLT", "ParticleTransformer_JetClass", "DeepJett"])
def test_models_that_are_not_converted(name):
    with pytest.raises(ModelError, match=f"checkpoints of model '{name}' cannot be converted: take one of DeepJet,"):
        convert.to_ours(name, {})
