"""B-Hive's first Particle Transformer as its own checkpoints were trained: padded candidates take part.

There a padded candidate is a key like any other whose score is raised by 1, its pairs have features 0 and a bias all
the same, and batch norms see it; only the class token does not. Over the parameters of `part.v1`.

Axes: B jets, L candidates of all groups with padding, E width, H heads, P pairs i > j.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bhive_mltf.models.kinematics import log1p_features, pair_kinematics
from bhive_mltf.models.layers import Attention
from bhive_mltf.models.layout import hiding
from bhive_mltf.models.part.v2 import PairEmbedding2

RAISED_BY = 1.0
"""Added to the scores of padded keys."""


class Block(Protocol):
    """What the particle and class blocks of `part.v1` have in common."""

    attention: Attention
    norm_sum: nn.LayerNorm

    @property
    def feed_forward(self) -> nn.Module:
        """Behind the attention."""


class ParticleBlock(Block, Protocol):
    """A block of candidates."""

    norm: nn.LayerNorm


class ClassBlock(Block, Protocol):
    """A block of the class token."""

    norm_query: nn.LayerNorm
    norm_memory: nn.LayerNorm


def embedded(embeddings: Sequence[nn.Module], features: Sequence[Tensor]) -> Tensor:
    """Tokens [B,L,E] of all groups from the features [B,N,F] of each, padding included."""
    parts = zip(embeddings, features, strict=True)
    return torch.cat([embed(rows.flatten(0, 1)).view(*rows.shape[:2], -1) for embed, rows in parts], dim=1)


def attended(blocks: Sequence[ParticleBlock], tokens: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """Tokens [B,L,E] after the particle blocks; bias of pairs [B,H,L,L], mask bool [B,L] of real candidates."""
    bias = bias + RAISED_BY * (~mask).to(bias.dtype)[:, None, None, :]
    for block in blocks:
        tokens = _after_attention(block, tokens, block.attention(block.norm(tokens), bias))
    return tokens


def summarised(blocks: Sequence[ClassBlock], token: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Class tokens [B,E] after the class blocks, from the first one [1,1,E], which sees real candidates only."""
    token = token.expand(len(mask), -1, -1)
    bias = hiding(F.pad(~mask, (1, 0)), tokens.dtype)[:, None, None]
    for block in blocks:
        memory = block.norm_memory(torch.cat((token, tokens), dim=1))
        token = _after_attention(block, token, block.attention(memory, bias, query=block.norm_query(token)))
    return token.squeeze(1)


def pair_bias(embedding: PairEmbedding2, momenta: Tensor, mask: Tensor) -> Tensor:
    """Attention bias [B,H,L,L] of all pairs, those with padding included; a candidate with itself has bias zero."""
    n_jets, length = mask.shape
    i, j = torch.tril_indices(length, length, -1, device=mask.device)
    start = torch.arange(n_jets, device=mask.device)[:, None] * length
    with torch.no_grad(), torch.autocast(momenta.device.type, enabled=False):
        kinematics = pair_kinematics(momenta.flatten(0, 1), (start + i).flatten(), (start + j).flatten())
        real = (mask[:, i] & mask[:, j]).flatten()[:, None]
        features = log1p_features(kinematics).masked_fill(~real, 0)
    features = features.to(embedding.norms[0].get_parameter("weight").dtype)
    values: Tensor = embedding.embed(features)
    values = values.view(len(values), n_jets, -1).transpose(0, 1)
    bias = values.new_zeros(n_jets, len(values[0]), length, length)
    places = (slice(None), slice(None), i, j), (slice(None), slice(None), j, i)
    for place in places:
        bias[place] = values
    return bias


def _after_attention(block: Block, tokens: Tensor, found: Tensor) -> Tensor:
    tokens = block.norm_sum(tokens + found)
    added: Tensor = tokens + block.feed_forward(tokens)
    return added
