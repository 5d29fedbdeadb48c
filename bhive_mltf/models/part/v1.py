"""B-Hive's first Particle Transformer, its trigger versions, and UParT.

Embeddings of convolutions and batch norms, blocks after NormFormer (arXiv:2110.09456), ln(1 + x) pair features
(arXiv:2202.03772). Batch norms see real candidates and pairs only, unlike upstream's.
Axes: B jets, N candidates of all groups, F columns, E width, H heads, M real candidates, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bhive_mltf.models.base import Outputs, Tagger
from bhive_mltf.models.classes import HLT, OFFLINE
from bhive_mltf.models.layers import Attention, batch_norm
from bhive_mltf.models.options import at_least, divisible, fraction
from bhive_mltf.models.outputs import OFFLINE_OUTPUTS
from bhive_mltf.models.part.v2 import PairEmbedding2
from bhive_mltf.models.regression import OFFLINE_COLUMNS, offline_targets
from bhive_mltf.models.resolve import GLOBAL, GroupRequest
from bhive_mltf.models.sequence import class_bias, embedded, pair_bias

if TYPE_CHECKING:
    from bhive_mltf.config import Config
    from bhive_mltf.interface import Batch

NORM_EPS = 1e-3
EXPANSION = 4
PAIR_WIDTH = 6  # times the number of heads
HLT_JET = ("jet_pt", "jet_eta", "jet_phi", "jet_energy")


class ConvolutionLayer(nn.Module):
    """Linear map of each candidate, activation, batch norm, dropout, and with `twice` another batch norm."""

    def __init__(self, before: int, after: int, dropout: float, activation: nn.Module, *, twice: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        self.activation = activation
        self.norm = nn.BatchNorm1d(after, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.norm_out = nn.BatchNorm1d(after, eps=NORM_EPS) if twice else None

    def forward(self, rows: Tensor) -> Tensor:
        """[M,before] -> [M,after]."""
        values: Tensor = self.dropout(batch_norm(self.norm, self.activation(self.linear(rows))))
        return values if self.norm_out is None else batch_norm(self.norm_out, values)


class ConvolutionEmbedding(nn.Module):
    """Features of one group -> tokens: batch norm and two convolution layers."""

    def __init__(
        self, n_features: int, embed_dim: int, dropout: float, activation: nn.Module, *, twice: bool = True
    ) -> None:
        super().__init__()
        self.norm_in = nn.BatchNorm1d(n_features, eps=NORM_EPS)
        self.first = ConvolutionLayer(n_features, embed_dim, dropout, activation, twice=twice)
        self.second = ConvolutionLayer(embed_dim, embed_dim, dropout, activation, twice=twice)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [M,F] of real candidates -> [M,E]."""
        tokens: Tensor = self.second(self.first(batch_norm(self.norm_in, rows)))
        return tokens


class FeedForward(nn.Module):
    """Linear to 4 E, GELU, LayerNorm, Linear, dropout."""

    def __init__(self, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(embed_dim, EXPANSION * embed_dim)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(EXPANSION * embed_dim)
        self.contract = nn.Linear(EXPANSION * embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,N,E] -> [B,N,E], without the residual."""
        contracted: Tensor = self.dropout(self.contract(self.norm(self.activation(self.expand(tokens)))))
        return contracted


class ParticleBlock1(nn.Module):
    """Self-attention with the pair bias; the normalised sum is what the feed-forward part is added to."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads, dropout)
        self.norm_sum = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim, dropout)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Tokens [B,N,E] from tokens and bias [B,H,N,N] (-inf: hidden key)."""
        tokens = self.norm_sum(tokens + self.attention(self.norm(tokens), bias))
        added: Tensor = tokens + self.feed_forward(tokens)
        return added


class ClassBlock1(nn.Module):
    """Attention of the class token to itself and all candidates; then as in a particle block."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(embed_dim)
        self.norm_memory = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads, dropout)
        self.norm_sum = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim, dropout)

    def forward(self, token: Tensor, tokens: Tensor, bias: Tensor) -> Tensor:
        """Class token [B,1,E] from the class token, tokens [B,N,E] and bias [B,1,1,1+N]."""
        memory = self.norm_memory(torch.cat((token, tokens), dim=1))
        token = self.norm_sum(token + self.attention(memory, bias, query=self.norm_query(token)))
        added: Tensor = token + self.feed_forward(token)
        return added


class Part1Tagger(Tagger):
    """Common part: the candidates of all groups become tokens of one sequence.

    jet_inputs : columns of the jet that join the class token before the last layer.
    """

    padding = "longest"
    jet_inputs: tuple[str, ...] = ()

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
        super().__init__(config)
        at_least(self.name, 1, num_layers=num_layers, num_cls_layers=num_cls_layers, embed_dim=embed_dim)
        at_least(self.name, 1, num_heads=num_heads)
        fraction(self.name, dropout=dropout)
        divisible(self.name, embed_dim, num_heads)
        groups = [group for group in self.inputs.groups if group.name != GLOBAL]
        self.embeddings = nn.ModuleDict(
            {group.name: ConvolutionEmbedding(len(group.columns), embed_dim, dropout, nn.ReLU()) for group in groups}
        )
        self.pair_embedding = PairEmbedding2(num_heads, PAIR_WIDTH * num_heads, nn.GELU())
        self.blocks = nn.ModuleList(ParticleBlock1(embed_dim, num_heads, dropout) for _ in range(num_layers))
        self.class_blocks = nn.ModuleList(ClassBlock1(embed_dim, num_heads, dropout) for _ in range(num_cls_layers))
        self.class_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        nn.init.trunc_normal_(self.class_token, std=0.02)
        self.norm = nn.LayerNorm(embed_dim)
        n_jet = len(self.jet_inputs)
        self.norm_global = nn.BatchNorm1d(n_jet, eps=NORM_EPS) if n_jet else nn.Identity()
        self.head = nn.Linear(embed_dim + n_jet, self.n_outputs)

    def forward(self, batch: Batch) -> Tensor | Outputs:
        """Logits [B,C], or `Outputs`."""
        tokens, mask = embedded(self, batch, self.embeddings)
        bias = pair_bias(self, batch, self.embeddings, mask, self.pair_embedding)
        for block in self.blocks:
            tokens = block(tokens, bias)

        token, bias = self.class_token.expand(len(mask), -1, -1), class_bias(mask, bias.dtype)
        for block in self.class_blocks:
            token = block(token, tokens, bias)
        jet: Tensor = self.norm(token.squeeze(1))
        if self.jet_inputs:
            columns = self.jet_columns(batch, self.jet_inputs).to(jet.dtype)
            jet = torch.cat((jet, batch_norm(self.norm_global, columns)), dim=1)
        return self.outputs(self.head(jet))


class ParticleTransformer(Part1Tagger):
    """Offline b tagging from charged and neutral candidates and vertices."""

    classes = OFFLINE
    groups = tuple(GroupRequest(name, four_vectors=True) for name in ("cpf", "npf", "vtx"))


class ParticleTransformerHLT(Part1Tagger):
    """Trigger tagging from candidates and vertices."""

    classes = HLT
    groups = tuple(GroupRequest(name, four_vectors=True) for name in ("cpf", "vtx"))


class GlobalParticleTransformerHLT(ParticleTransformerHLT):
    """The same, with the four-momentum of the jet beside the class token."""

    groups = (GroupRequest(GLOBAL, columns=HLT_JET), *ParticleTransformerHLT.groups)
    jet_inputs = HLT_JET


class UParT_v0(ParticleTransformer):  # noqa: N801 - B-Hive names its models so
    """Unified ParT: flavour, and the jet's momentum at particle level with its resolution.

    Loss: CrossEntropyLogCosh.
    """

    groups = (GroupRequest(GLOBAL, columns=OFFLINE_COLUMNS), *ParticleTransformer.groups)
    regression = OFFLINE_OUTPUTS

    def regression_targets(self, batch: Batch) -> Tensor:
        """Targets [B,4]."""
        return offline_targets(self.jet_columns(batch, OFFLINE_COLUMNS))
