"""B-Hive's second Particle Transformer: RMSNorm, SiLU and SwiGLU in pre-norm blocks, ln(1 + x) pair features.

RMSNorm: arXiv:1910.07467; SwiGLU: arXiv:2002.05202; class attention: arXiv:2103.17239; pairs: arXiv:2202.03772.
Axes: B jets, F features, E width, H heads, C classes; M real candidates, R rows and P pairs of a layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bhive_mltf.models.base import Outputs, Tagger, at_least, divisible, fraction
from bhive_mltf.models.classes import JETCLASS, OFFLINE, OFFLINE_TAU, OFFLINE_TAUS
from bhive_mltf.models.kinematics import log1p_features, pair_kinematics
from bhive_mltf.models.layers import Attention, RMSNorm, RowWise, batch_norm, row_wise
from bhive_mltf.models.layout import Layout
from bhive_mltf.models.resolve import GroupRequest

if TYPE_CHECKING:
    from bhive_mltf.config import Config
    from bhive_mltf.interface import Batch, Padding

EXPANSION = 4
NORM_EPS = 1e-3
PAIR_WIDTH = 3  # times the number of heads


class TokenEmbedding(RowWise):
    """Features of one group -> tokens: RMSNorm, Linear, SiLU, dropout, and the same again with a skip."""

    def __init__(self, n_features: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = RMSNorm(n_features)
        self.linear_in = nn.Linear(n_features, embed_dim)
        self.norm = RMSNorm(embed_dim)
        self.linear = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    @row_wise
    def forward(self, features: Tensor) -> Tensor:
        """Tokens [M,E] from features [M,F]."""
        tokens = self.dropout(F.silu(self.linear_in(self.norm_in(features))))
        embedded: Tensor = tokens + self.dropout(F.silu(self.linear(self.norm(tokens))))
        return embedded


class PairEmbedding2(RowWise):
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

    def forward(self, momenta: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        """Bias of each group [H,S,L,L] from the momenta [M,4] of real candidates."""
        with torch.no_grad(), torch.autocast(momenta.device.type, enabled=False):
            kinematics = pair_kinematics(layout.rows(momenta), layout.first, layout.second)
            features = log1p_features(kinematics).to(self.norms[0].get_parameter("weight").dtype)
        return layout.pair_biases(self.embed(features))

    @row_wise
    def embed(self, values: Tensor) -> Tensor:
        """Values [H,P] from the features [P,4] of pairs."""
        for norm, linear in zip(self.norms, self.linears, strict=True):
            values = linear(self.activation(batch_norm(norm, values)))
        return values.t()


class GatedFeedForward(nn.Module):
    """RMSNorm, SwiGLU of width 4 E, RMSNorm, Linear, dropout."""

    def __init__(self, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = RMSNorm(embed_dim)
        self.expand = nn.Linear(embed_dim, 2 * EXPANSION * embed_dim)
        self.norm_expanded = RMSNorm(EXPANSION * embed_dim)
        self.contract = nn.Linear(EXPANSION * embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """[M,E] -> [M,E], without the residual."""
        value, gate = self.expand(self.norm(tokens)).chunk(2, dim=-1)
        contracted: Tensor = self.dropout(self.contract(self.norm_expanded(value * F.silu(gate))))
        return contracted


class Block(RowWise):
    """Common part of the blocks of B-Hive's two transformers: norms, attention, and what a version does with it.

    new_norm : makes a norm of a width.
    """

    new_norm: type[nn.Module]

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self._norms(embed_dim)
        self.attention = Attention(embed_dim, num_heads, dropout)

    def _norms(self, embed_dim: int) -> None:
        raise NotImplementedError

    def _after_attention(self, tokens: Tensor, attended: Tensor) -> Tensor:
        raise NotImplementedError


class ParticleBlock(Block):
    """Self-attention with the pair bias, pre-norm."""

    def _norms(self, embed_dim: int) -> None:
        self.norm = self.new_norm(embed_dim)

    def forward(self, rows: Tensor, biases: Sequence[Tensor], layout: Layout) -> Tensor:
        """Rows [R,E] from rows and the bias of each group [H or 1,S,L or 1,L]."""
        return self._after_attention(rows, self.attention.among_rows(self._projected(rows), biases, layout))

    @row_wise
    def _projected(self, rows: Tensor) -> Tensor:
        projected: Tensor = self.attention.project_in(self.norm(rows))
        return projected


class ClassBlock(Block):
    """Attention of the class token to itself and all candidates."""

    def _norms(self, embed_dim: int) -> None:
        self.norm_query = self.new_norm(embed_dim)
        self.norm_memory = self.new_norm(embed_dim)

    def forward(self, token: Tensor, rows: Tensor, layout: Layout) -> Tensor:
        """Class tokens [B,E] from them and rows [R,E]."""
        return self._after_attention(token, self.attention.to_rows(*self._projected(token, rows), layout))

    @row_wise
    def _projected(self, token: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention, norm = self.attention, self.norm_memory
        own, others = (attention.keys_and_values(norm(values)) for values in (token, rows))
        return attention.queries(self.norm_query(token)), own, others


class Block2(Block):
    """Attention, then the gated feed-forward part; both with residuals."""

    new_norm = RMSNorm

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(embed_dim, num_heads, dropout)
        self.feed_forward = GatedFeedForward(embed_dim, dropout)

    @row_wise
    def _after_attention(self, tokens: Tensor, attended: Tensor) -> Tensor:
        tokens = tokens + self.attention.project_out(attended)
        added: Tensor = tokens + self.feed_forward(tokens)
        return added


class ParticleBlock2(ParticleBlock, Block2):
    """Block of the candidates."""


class ClassBlock2(ClassBlock, Block2):
    """Block of the class token."""


class Part2Tagger(Tagger):
    """Common part of both transformers: the candidates of all groups become tokens of one sequence.

    jet_inputs : columns of the jet that a `forward` puts behind the class token, before the last layer.
    """

    padding: Padding = "longest"
    laid_out = True
    jet_inputs: tuple[str, ...] = ()
    particle_block: type[ParticleBlock] = ParticleBlock2
    class_block: type[ClassBlock] = ClassBlock2

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
        self.embeddings = self.per_group(lambda n_features: self.embedding(n_features, embed_dim, dropout))
        self.pair_embedding = self.embedding_of_pairs(num_heads)
        self.blocks = nn.ModuleList(self.particle_block(embed_dim, num_heads, dropout) for _ in range(num_layers))
        self.class_blocks = nn.ModuleList(
            self.class_block(embed_dim, num_heads, dropout) for _ in range(num_cls_layers)
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        nn.init.trunc_normal_(self.class_token, std=0.02)
        self.norm = self.particle_block.new_norm(embed_dim)
        n_jet = len(self.jet_inputs)
        self.norm_global = nn.BatchNorm1d(n_jet, eps=NORM_EPS) if n_jet else nn.Identity()
        self.head = nn.Linear(embed_dim + n_jet, self.n_outputs)

    def embedding(self, n_features: int, embed_dim: int, dropout: float) -> nn.Module:
        """Rows [M,F] -> [M,E] of one group."""
        return TokenEmbedding(n_features, embed_dim, dropout)

    def embedding_of_pairs(self, num_heads: int) -> PairEmbedding2:
        """Momenta -> attention bias."""
        return PairEmbedding2(num_heads)

    def forward(self, batch: Batch) -> Tensor | Outputs:
        """Logits [B,C], or `Outputs`."""
        tokens, layout = self.class_tokens(batch)
        return self.outputs(layout.jets(self.head(self.norm(tokens))))

    def class_tokens(self, batch: Batch) -> tuple[Tensor, Layout]:
        """Tokens [max(B,1),E] of the jets in the order of the layout's groups."""
        batch, names = self.counted(batch), list(self.embeddings)
        layout = self.lay_out(batch, names, "others")
        rows = layout.rows(self.real_tokens(batch, self.embeddings, layout))
        biases = self.pair_embedding(self.real_momenta(batch, names, layout), layout)
        for block in self.blocks:
            rows = block(rows, biases, layout)

        token = self.class_token[0].expand(len(layout.order), -1)
        for block in self.class_blocks:
            token = block(token, rows, layout)
        return token, layout


class ParticleTransformer2(Part2Tagger):
    """Offline b tagging from charged and neutral candidates and vertices."""

    classes = OFFLINE
    groups = tuple(GroupRequest(name, four_vectors=True) for name in ("cpf", "npf", "vtx"))


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
