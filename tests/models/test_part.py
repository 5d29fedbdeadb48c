"""The paper's ParT and B-Hive's second one: numbers, formulas, batch statistics."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from bhive_mltf.config import load
from bhive_mltf.models.kinematics import log_features, pair_kinematics
from bhive_mltf.models.layout import lay_out
from bhive_mltf.models.part.jetclass import JETCLASS_FEATURES, Standardise
from bhive_mltf.models.part.network import PairEmbedding, PartNetwork
from bhive_mltf.models.part.v2 import ClassBlock2, PairEmbedding2, ParticleBlock2
from tests.helpers.model_factory import jets, small

CPU = torch.device("cpu")


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_layer_list_of_the_second_transformer():
    assert count(ParticleBlock2(128, 8, 0.1)) == 264_576
    assert count(ClassBlock2(128, 8, 0.1)) == 264_704
    assert count(PairEmbedding2(8)) == 1_024


def test_the_published_network_for_other_inputs():
    """Parameters per input feature: its batch norm, its LayerNorm, its row of the first layer."""
    assert count(PartNetwork(17, 10)) == 2_143_486
    assert count(PartNetwork(18, 10)) - count(PartNetwork(17, 10)) == 2 + 2 + 128


def test_seventeen_features_by_name():
    assert len(JETCLASS_FEATURES) == 17
    model = small("ParticleTransformer_JetClass")
    assert model.inputs.group("cpf").columns[:5] == (
        "part_logpt", "part_loge", "part_logptrel", "part_logerel", "part_deltaR",
    )  # fmt: skip
    assert set(model.inputs.group("cpf").columns) < set(load("jet_class").group("cpf").columns)


def test_standardisation_is_the_table():
    raw = torch.linspace(-20, 20, 9 * 17).view(1, 9, 17)
    mask = torch.arange(9)[None] < 7
    got = Standardise(JETCLASS_FEATURES)(raw, mask)
    for column, feature in enumerate(JETCLASS_FEATURES):
        values = (raw[0, :, column].numpy() - feature.shift) * feature.scale
        expected = np.where(mask[0], np.clip(values, feature.low, feature.high), 0)
        np.testing.assert_allclose(got[0, :, column], expected, rtol=1e-6)
    assert got[0, 0, 0] == -5
    assert got[0, 6, 12] == 1
    assert not Standardise(JETCLASS_FEATURES).state_dict()


def _four_momenta(n_jets, length):
    p3 = torch.randn(n_jets, length, 3, dtype=torch.float64)
    return torch.cat((p3, (p3.square().sum(-1, keepdim=True) + 0.02).sqrt()), -1)


def test_w34_pair_statistics_are_those_of_real_pairs():
    """The running mean is that of all pairs of real candidates, whatever the padding."""
    torch.manual_seed(0)
    counts = np.array([4, 1, 6])
    momenta = _four_momenta(3, 6)
    padded = torch.cat((momenta, 1e3 * torch.ones(3, 5, 4, dtype=torch.float64)), 1)
    for embedding, pairs in ((PairEmbedding((5,), 2, True), "all"), (PairEmbedding2(2), "others")):
        tight, wide = embedding.double(), copy.deepcopy(embedding)
        seen, biases = [], []
        tight.norms[0].register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        for one, values in ((tight, momenta), (wide, padded)):
            layout = lay_out(counts[None], [values.shape[1]], CPU, pairs, packed=pairs == "others")
            if pairs == "all":
                rows = layout.rows(values.flatten(0, 1))
                features = log_features(pair_kinematics(rows, layout.first, layout.second))
                biases.append(layout.pair_biases(one(features)))
            else:
                biases.append(one(values.flatten(0, 1)[layout.real[0]], layout))
        torch.testing.assert_close(biases[0], biases[1])
        torch.testing.assert_close(tight.norms[-1].running_var, wide.norms[-1].running_var)
        expected = counts * (counts + (1 if pairs == "all" else -1)) // 2
        assert seen[0].shape == (int(expected.sum()), 4)
        torch.testing.assert_close(tight.norms[0].running_mean, 0.1 * seen[0].mean(0))
        if pairs == "others":
            assert all(
                not bias.diagonal(dim1=2, dim2=3)[:, ~group.hidden].any()
                for bias, group in zip(biases[0], layout.groups, strict=True)
            )


def test_input_norm_of_the_paper_s_network_sees_padded_zeros():
    torch.manual_seed(0)
    network = PartNetwork(3, 2, embed_dims=(8,), pair_embed_dims=(4,), num_layers=1, num_cls_layers=1, num_heads=2)
    mask = torch.arange(5)[None] < torch.tensor([[2], [5]])
    features = torch.randn(2, 5, 3) * mask[..., None]
    network(features, _four_momenta(2, 5).float(), np.array([2, 5]))
    torch.testing.assert_close(network.embedding.norm.running_mean, 0.1 * features.mean((0, 1)))


def test_class_blocks_have_no_dropout():
    network = PartNetwork(3, 2, embed_dims=(8,), num_layers=1, num_cls_layers=1, num_heads=2, dropout=0.3)
    assert network.blocks[0].dropout == network.blocks[0].attention.dropout == 0.3
    assert network.class_blocks[0].dropout == network.class_blocks[0].attention.dropout == 0


def test_w32_both_kinds_of_four_vectors_give_the_same_logits():
    """The second transformer on (pt, eta, phi, E) of part_run3, and on the same jets in (px, py, pz, E)."""
    model = small("ParticleTransformer2").eval()
    batch = jets(model, [5, 3, 4])
    assert {group.kind for group in model.inputs.groups} == {"ptetaphie"}
    expected = model(batch)

    momenta = {name: model.momenta(batch, name) for name in batch.groups}
    energy, pz = momenta["cpf"][..., 3], momenta["cpf"][..., 2]
    assert (energy >= pz.abs()).all()
    groups = {name: replace(group, four_vectors=momenta[name]) for name, group in batch.groups.items()}
    model.inputs = replace(model.inputs, groups=tuple(replace(group, kind="pxpypze") for group in model.inputs.groups))
    torch.testing.assert_close(model(replace(batch, groups=groups)), expected)


def test_w32_pair_masses_are_masses():
    """ln m2 of the JetClass ParT comes from the four-vector: constant when upstream read other columns."""
    model = small("ParticleTransformer_JetClass")
    batch = jets(model, [6, 6])
    seen = []
    model.network.pair_embedding.norms[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(batch)
    assert (seen[0].std(0) > 0.1).all()
