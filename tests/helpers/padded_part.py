"""The published Particle Transformer on padded jets, over the parameters of a `PartNetwork`: a reference.

Axes: B jets, N candidates, padding included, P pairs, H heads, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bhive_mltf.interface import Batch
from bhive_mltf.models.kinematics import log_features, pair_kinematics
from bhive_mltf.models.layers import batch_norm
from bhive_mltf.models.part.jetclass import ParticleTransformer_JetClass
from bhive_mltf.models.part.network import Block, PartNetwork


class PairIndex(NamedTuple):
    """Unordered pairs of real candidates of the same jet, with themselves too; each int64 [P].

    first, second : candidates i and j as rows of the flattened [B*N]; i >= j inside the jet.
    lower, upper : places (i, j) and (j, i) in the flattened [B*N*N].
    """

    first: Tensor
    second: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> PairIndex:
        """All pairs of a mask [B,N]; a GPU is waited for."""
        length = mask.shape[1]
        jet, i, j = (mask[:, :, None] & mask[:, None, :]).tril().nonzero(as_tuple=True)
        first, second = jet * length + i, jet * length + j
        return cls(first, second, first * length + j, second * length + i)


def spread_pairs(values: Tensor, pairs: PairIndex, n_jets: int, length: int) -> Tensor:
    """Values [P,H] of unordered pairs as a symmetric attention bias [B,H,N,N], zero for all other pairs."""
    flat = values.new_zeros(n_jets * length * length, values.shape[-1])
    # out of place, and a self-pair is written twice with the same value: its gradient counts once
    flat = flat.index_copy(0, pairs.lower, values).index_copy(0, pairs.upper, values)
    return flat.view(n_jets, length, length, values.shape[-1]).permute(0, 3, 1, 2)


def visible_keys(mask: Tensor) -> Tensor:
    """Keys [B,N] that attention may look at: the real candidates, and the first one of a jet that has none.

    A softmax over nothing is NaN; what a jet without candidates computes here is masked later on.
    """
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return mask | (first & ~mask.any(1, keepdim=True))


def key_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention bias [B,1,1,N]: 0 for a visible key, -inf for another one."""
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill(~visible, float("-inf"))[:, None, None, :]


def logits_of_tagger(tagger: ParticleTransformer_JetClass, batch: Batch) -> Tensor:
    """Logits [B,10] as `ParticleTransformer_JetClass.forward` gives them; the batch needs no counts."""
    mask = tagger.group_of(batch, "cpf").mask
    features = tagger.standardise(tagger.features(batch, "cpf"), mask)
    return padded_logits(tagger.network, features, tagger.momenta(batch, "cpf"), mask)


def padded_logits(network: PartNetwork, features: Tensor, momenta: Tensor, mask: Tensor) -> Tensor:
    """Logits [B,C] as `PartNetwork.forward` gives them.

    features : [B,N,F], zero where padded. momenta : [B,N,4], (px, py, pz, E). mask : bool [B,N], in any order.
    """
    embedding = network.embedding
    tokens = embedding.layers(batch_norm(embedding.norm, features.flatten(0, 1)).view_as(features))
    tokens = tokens.masked_fill(~mask[..., None], 0)
    pairs = PairIndex.of(mask)
    with torch.no_grad(), torch.autocast(momenta.device.type, enabled=False):
        kinematics = log_features(pair_kinematics(momenta.flatten(0, 1), pairs.first, pairs.second))
    values = network.pair_embedding(kinematics.to(features.dtype)).t()
    bias = spread_pairs(values, pairs, *mask.shape)
    bias = bias + key_bias(visible_keys(mask), bias.dtype)
    for block in network.blocks:
        tokens = _block(block, tokens, block.attention(block.norm_before_attention(tokens), bias))

    token = network.class_token.expand(len(mask), -1, -1)
    class_bias = key_bias(F.pad(mask, (1, 0), value=True), bias.dtype)
    for block in network.class_blocks:
        memory = block.norm_before_attention(torch.cat((token, tokens), dim=1))
        token = _block(block, token, block.attention(memory, class_bias, query=token))
    return network.head(network.norm(token.squeeze(1)))


def _block(block: Block, tokens: Tensor, attended: Tensor) -> Tensor:
    """What follows attention, step by step as published: heads scaled after the output projection."""
    n_jets, length, width = attended.shape
    heads = attended.reshape(n_jets, length, len(block.head_scale), width // len(block.head_scale))
    scaled = (heads * block.head_scale[:, None]).flatten(-2)
    rate = block.rate
    tokens = tokens + F.dropout(block.norm_after_attention(scaled), rate)
    hidden = F.dropout(F.gelu(block.expand(block.norm_before_expansion(tokens))), rate)
    return block.residual_scale * tokens + F.dropout(block.contract(block.norm_expanded(hidden)), rate)
