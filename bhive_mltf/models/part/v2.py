"""B-Hive's second Particle Transformer: RMSNorm, SiLU and SwiGLU in pre-norm blocks, ln(1 + x) pair features.

RMSNorm: arXiv:1910.07467; SwiGLU: arXiv:2002.05202; class attention: arXiv:2103.17239; pairs: arXiv:2202.03772.
Axes: B jets, N candidates of all groups, F features, E width, H heads, P pairs, C classes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bhive_mltf.models.base import Tagger
from bhive_mltf.models.classes import JETCLASS, OFFLINE, OFFLINE_TAU, OFFLINE_TAUS
from bhive_mltf.models.kinematics import log1p_features, pair_kinematics
from bhive_mltf.models.layers import (
    Attention,
    PairIndex,
    RMSNorm,
    batch_norm,
    key_bias,
    spread_pairs,
    visible_keys,
)
from bhive_mltf.models.options import at_least, divisible, fraction
from bhive_mltf.models.resolve import GroupRequest

if TYPE_CHECKING:
    from bhive_mltf.config import Config
    from bhive_mltf.interface import Batch

EXPANSION = 4
RMS_EPS = 1e-6
PAIR_WIDTH = 3  # times the number of heads


class TokenEmbedding(nn.Module):
    """Features of one group -> tokens: RMSNorm, Linear, SiLU, dropout, and the same again with a skip."""

    def __init__(self, n_features: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = RMSNorm(n_features, eps=RMS_EPS)
        self.linear_in = nn.Linear(n_features, embed_dim)
        self.norm = RMSNorm(embed_dim, eps=RMS_EPS)
        self.linear = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Tokens [B,N,E] from features [B,N,F]."""
        tokens = self.dropout(F.silu(self.linear_in(self.norm_in(features))))
        embedded: Tensor = tokens + self.dropout(F.silu(self.linear(self.norm(tokens))))
        return embedded


class PairEmbedding2(nn.Module):
    """Pairs i > j of real candidates -> attention bias of each head; a candidate with itself has bias zero.

    Padding never enters the batch norms, unlike upstream, whose statistics depend on it.
    """

    n_features = 4

    def __init__(self, num_heads: int, width: int | None = None, activation: nn.Module | None = None) -> None:
        super().__init__()
        width = width or PAIR_WIDTH * num_heads
        sizes = (self.n_features, width, width, num_heads)
        self.activation = activation or nn.SiLU()
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes[:-1])
        self.linears = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))

    def forward(self, momenta: Tensor, mask: Tensor) -> Tensor:
        """Bias [B,H,N,N] from momenta [B,N,4] and mask [B,N]."""
        pairs = PairIndex.of(mask, with_self=False)
        with torch.no_grad(), torch.autocast(momenta.device.type, enabled=False):
            values = log1p_features(pair_kinematics(momenta.flatten(0, 1), pairs.first, pairs.second))
        values = values.to(next(self.parameters()).dtype)
        for norm, linear in zip(self.norms, self.linears, strict=True):
            values = linear(self.activation(batch_norm(norm, values)))
        return spread_pairs(values, pairs, *mask.shape)


class GatedFeedForward(nn.Module):
    """RMSNorm, SwiGLU of width 4 E, RMSNorm, Linear, dropout."""

    def __init__(self, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = RMSNorm(embed_dim, eps=RMS_EPS)
        self.expand = nn.Linear(embed_dim, 2 * EXPANSION * embed_dim)
        self.norm_expanded = RMSNorm(EXPANSION * embed_dim, eps=RMS_EPS)
        self.contract = nn.Linear(EXPANSION * embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,N,E] -> [B,N,E], without the residual."""
        value, gate = self.expand(self.norm(tokens)).chunk(2, dim=-1)
        contracted: Tensor = self.dropout(self.contract(self.norm_expanded(value * F.silu(gate))))
        return contracted


class ParticleBlock2(nn.Module):
    """Self-attention with the pair bias, then the gated feed-forward part; both pre-norm with residuals."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = RMSNorm(embed_dim, eps=RMS_EPS)
        self.attention = Attention(embed_dim, num_heads, dropout)
        self.feed_forward = GatedFeedForward(embed_dim, dropout)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Tokens [B,N,E] from tokens and bias [B,H,N,N] (-inf: hidden key)."""
        tokens = tokens + self.attention(self.norm(tokens), bias)
        added: Tensor = tokens + self.feed_forward(tokens)
        return added


class ClassBlock2(nn.Module):
    """Attention of the class token to itself and all candidates, then the gated feed-forward part."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_query = RMSNorm(embed_dim, eps=RMS_EPS)
        self.norm_memory = RMSNorm(embed_dim, eps=RMS_EPS)
        self.attention = Attention(embed_dim, num_heads, dropout)
        self.feed_forward = GatedFeedForward(embed_dim, dropout)

    def forward(self, token: Tensor, tokens: Tensor, bias: Tensor) -> Tensor:
        """Class token [B,1,E] from the class token, tokens [B,N,E] and bias [B,1,1,1+N]."""
        memory = self.norm_memory(torch.cat((token, tokens), dim=1))
        token = token + self.attention(memory, bias, query=self.norm_query(token))
        added: Tensor = token + self.feed_forward(token)
        return added


class Part2Tagger(Tagger):
    """Common part: the candidates of all groups become tokens of one sequence."""

    padding = "longest"

    def __init__(
        self,
        config: Config,
        *,
        num_layers: int,
        num_cls_layers: int,
        embed_dim: int,
        num_heads: int,
        dropout: float,
    ) -> None:
        super().__init__(config)
        at_least(self.name, 1, num_layers=num_layers, num_cls_layers=num_cls_layers, embed_dim=embed_dim)
        at_least(self.name, 1, num_heads=num_heads)
        fraction(self.name, dropout=dropout)
        divisible(self.name, embed_dim, num_heads)
        self.embeddings = nn.ModuleDict(
            {group.name: TokenEmbedding(len(group.columns), embed_dim, dropout) for group in self.inputs.groups}
        )
        self.pair_embedding = PairEmbedding2(num_heads)
        self.blocks = nn.ModuleList(ParticleBlock2(embed_dim, num_heads, dropout) for _ in range(num_layers))
        self.class_blocks = nn.ModuleList(ClassBlock2(embed_dim, num_heads, dropout) for _ in range(num_cls_layers))
        self.class_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        nn.init.trunc_normal_(self.class_token, std=0.02)
        self.norm = RMSNorm(embed_dim, eps=RMS_EPS)
        self.head = nn.Linear(embed_dim, len(self.classes))

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B,C]."""
        names = list(self.embeddings)
        tokens = torch.cat([self.embeddings[name](self.features(batch, name)) for name in names], dim=1)
        momenta = torch.cat([self.momenta(batch, name) for name in names], dim=1)
        mask = torch.cat([self.group_of(batch, name).mask for name in names], dim=1)

        bias = self.pair_embedding(momenta, mask)
        bias = bias + key_bias(visible_keys(mask), bias.dtype)
        for block in self.blocks:
            tokens = block(tokens, bias)

        token = self.class_token.expand(len(mask), -1, -1)
        class_bias = key_bias(torch.cat((mask.new_ones(len(mask), 1), mask), dim=1), bias.dtype)
        for block in self.class_blocks:
            token = block(token, tokens, class_bias)
        logits: Tensor = self.head(self.norm(token.squeeze(1)))
        return logits


class ParticleTransformer2(Part2Tagger):
    """Offline b tagging from charged and neutral candidates and vertices."""

    classes = OFFLINE
    groups = tuple(GroupRequest(name, four_vectors=True) for name in ("cpf", "npf", "vtx"))

    def __init__(
        self,
        config: Config,
        *,
        num_layers: int = 3,
        num_cls_layers: int = 1,
        embed_dim: int = 128,
        num_heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            config,
            num_layers=num_layers,
            num_cls_layers=num_cls_layers,
            embed_dim=embed_dim,
            num_heads=num_heads,
            dropout=dropout,
        )


class ParticleTransformer2_LT(ParticleTransformer2):  # noqa: N801 - B-Hive names its models so
    """The same with lost tracks."""

    groups = tuple(GroupRequest(name, four_vectors=True) for name in ("cpf", "npf", "vtx", "lt"))


class ParticleTransformer2_LT_tau(ParticleTransformer2_LT):  # noqa: N801
    """With hadronic taus of both charges, and one class of b jets."""

    classes = OFFLINE_TAUS


class ParticleTransformer2_LT_tau_all(ParticleTransformer2_LT):  # noqa: N801
    """With one class of hadronic taus, and one of b jets."""

    classes = OFFLINE_TAU


class ParticleTransformer2_JetClass(Part2Tagger):  # noqa: N801 - B-Hive names its models so
    """The ten classes of JetClass from all columns of its particles but the four-vector."""

    classes = JETCLASS
    groups = (GroupRequest("cpf", four_vectors=True),)

    def __init__(
        self,
        config: Config,
        *,
        num_layers: int = 8,
        num_cls_layers: int = 2,
        embed_dim: int = 128,
        num_heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            config,
            num_layers=num_layers,
            num_cls_layers=num_cls_layers,
            embed_dim=embed_dim,
            num_heads=num_heads,
            dropout=dropout,
        )
