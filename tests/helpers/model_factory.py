"""Batches of random jets for any model."""

from __future__ import annotations

from functools import lru_cache

import torch

from bhive_mltf import config as configs
from bhive_mltf.interface import Batch, GroupBatch
from bhive_mltf.models import registry
from bhive_mltf.models.base import Outputs

CONFIGS = {
    "DeepJet": "DeepJet_AK4",
    "DeepJetHLT": "hlt_run3",
    "MoDJet": "mod_offline_run3",
    "DeepJetTransformer": "part_run3",
    "DeepJetTransformerHLT": "hlt_run3",
    "GlobalDeepJetTransformerHLT": "hlt_run3",
    "UDeepJetTransformerHLT": "hlt_run3",
    "ParticleTransformer": "part_run3",
    "ParticleTransformerHLT": "hlt_run3",
    "GlobalParticleTransformerHLT": "hlt_run3",
    "UParT_v0": "UParT_v0_run3",
    "ParticleTransformer2": "part_run3",
    "ParticleTransformer2_LT": "part_run3_lt",
    "ParticleTransformer2_LT_tau": "part_run3_lt",
    "ParticleTransformer2_LT_tau_all": "part_run3_lt",
    "ParticleTransformer2_LT_tau_Big": "part_run3_lt",
    "ParticleTransformer2_LT_tau_Huge": "part_run3_lt",
    "ParticleTransformer2_JetClass": "jet_class",
    "ParticleTransformer_JetClass": "jet_class",
    "ParticleNet_InPro": "part_run3",
    "ParticleNet_InProHLT": "hlt_run3",
    "UParticleNet_InProHLT": "hlt_run3",
}
TRANSFORMER = {"num_layers": 1, "num_cls_layers": 1, "embed_dim": 16, "num_heads": 2}


def _small_sizes(name):
    if name.endswith("DeepJetTransformer") or "DeepJetTransformerHLT" in name:
        return {"num_layers": 1, "embed_dim": 16, "num_heads": 2}
    if "ParticleNet" in name:
        return {"embed_dim": 16, "k": 3}
    if "DeepJet" in name or name == "MoDJet":
        return {}
    extra = {"pair_embed_dim": 8, "num_pair_layers": 2} if name == "ParticleTransformer_JetClass" else {}
    return {**TRANSFORMER, **extra}


SMALL = {name: _small_sizes(name) for name in CONFIGS}


load = lru_cache(configs.load)


def small(name, **changes):
    """A small model without dropout, the same weights each time."""
    torch.manual_seed(7)
    return registry.create(name, load(CONFIGS[name]), **{**SMALL[name], "dropout": 0.0, **changes})


def logits_of(output):
    """The logits of what a model gives."""
    return output.logits if isinstance(output, Outputs) else output


def _four_vectors(kind, shape, generator):
    pt = 1 + 30 * torch.rand(shape, generator=generator, dtype=torch.float64)
    eta = torch.randn(shape, generator=generator, dtype=torch.float64)
    phi = 6.28 * torch.rand(shape, generator=generator, dtype=torch.float64) - 3.14
    mass = 0.14
    energy = (pt.square() * eta.cosh().square() + mass**2).sqrt()
    if kind == "ptetaphie":
        return torch.stack((pt, eta, phi, energy), -1)
    return torch.stack((pt * phi.cos(), pt * phi.sin(), pt * eta.sinh(), energy), -1)


def jets(model, counts, length=None, seed=1):
    """A batch for `model`: jet b has counts[b] candidates in each group (as far as its length allows).

    Jet b depends neither on the others nor on `length`, the padded length of models that pad to the longest.
    """
    n_jets = len(counts)
    groups = {}
    for number, group in enumerate(model.inputs.groups):
        full = torch.zeros(n_jets, group.length, len(group.columns), dtype=torch.float64)
        vectors = torch.zeros(n_jets, group.length, 4, dtype=torch.float64)
        for jet in range(n_jets):
            generator = torch.Generator().manual_seed(10_000 * seed + 100 * jet + number)
            full[jet] = torch.randn(*full.shape[1:], generator=generator, dtype=torch.float64)
            vectors[jet] = _four_vectors(group.kind, group.length, generator)
        n = torch.as_tensor(counts, dtype=torch.int64).clamp(max=group.length)
        if group.name == "global":
            n = torch.ones_like(n)
        padded = group.length
        if model.padding == "longest" and group.name != "global":
            padded = min(group.length, max([*counts, 0]) if length is None else length)
        mask = torch.arange(padded)[None] < n[:, None]
        groups[group.name] = GroupBatch(
            features=(full[:, :padded] * mask[..., None]).float(),
            mask=mask,
            columns=group.columns,
            four_vectors=(vectors[:, :padded] * mask[..., None]).float() if group.kind else None,
        )
    return Batch(
        groups=groups,
        target=torch.arange(n_jets) % len(model.inputs.classes),
        weight=torch.ones(n_jets),
        jet_id=torch.zeros(n_jets, 2, dtype=torch.int64),
        process=torch.zeros(n_jets, dtype=torch.int64),
        kinematics=torch.zeros(n_jets, 2),
        global_size=n_jets,
    )
