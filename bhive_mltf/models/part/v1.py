"""B-Hive's first Particle Transformer, its trigger versions, and UParT.

Embeddings of convolutions and batch norms, blocks after NormFormer (arXiv:2110.09456), ln(1 + x) pair features
(arXiv:2202.03772). Batch norms see real candidates and pairs only, unlike upstream's.
Axes: B jets, F columns, E width, H heads, C classes; M real candidates and R rows of a layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bhive_mltf.errors import ModelError
from bhive_mltf.models.base import Outputs
from bhive_mltf.models.classes import HLT, OFFLINE, OFFLINE_OUTPUTS
from bhive_mltf.models.kinematics import log1p_features, pair_kinematics
from bhive_mltf.models.layers import RowWise, batch_norm, row_wise
from bhive_mltf.models.layout import hiding
from bhive_mltf.models.part.v2 import NORM_EPS, Block, ClassBlock, PairEmbedding2, Part2Tagger, ParticleBlock
from bhive_mltf.models.regression import OFFLINE_COLUMNS, offline_targets
from bhive_mltf.models.resolve import GLOBAL, GroupRequest

if TYPE_CHECKING:
    from bhive_mltf.config import Config
    from bhive_mltf.interface import Batch

EXPANSION = 4
PAIR_WIDTH = 6  # times the number of heads
PADDING_KEYS = ("hidden", "upstream")
RAISED_BY = 1.0  # scores of padded keys with "upstream"
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


class ConvolutionEmbedding(RowWise):
    """Features of one group -> tokens: batch norm and two convolution layers."""

    def __init__(
        self, n_features: int, embed_dim: int, dropout: float, activation: nn.Module, *, twice: bool = True
    ) -> None:
        super().__init__()
        self.norm_in = nn.BatchNorm1d(n_features, eps=NORM_EPS)
        self.first = ConvolutionLayer(n_features, embed_dim, dropout, activation, twice=twice)
        self.second = ConvolutionLayer(embed_dim, embed_dim, dropout, activation, twice=twice)

    @row_wise
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
        """[M,E] -> [M,E], without the residual."""
        contracted: Tensor = self.dropout(self.contract(self.norm(self.activation(self.expand(tokens)))))
        return contracted


class Block1(Block):
    """The normalised sum of tokens and attention is what the feed-forward part is added to."""

    new_norm = nn.LayerNorm

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(embed_dim, num_heads, dropout)
        self.norm_sum = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim, dropout)

    @row_wise
    def _after_attention(self, tokens: Tensor, attended: Tensor) -> Tensor:
        return self.added(tokens, self.attention.project_out(attended))

    def added(self, tokens: Tensor, found: Tensor) -> Tensor:
        """Tokens [...,E] from those before the block and what attention gives, [...,E]."""
        tokens = self.norm_sum(tokens + found)
        added: Tensor = tokens + self.feed_forward(tokens)
        return added


class ParticleBlock1(ParticleBlock, Block1):
    """Block of the candidates."""


class ClassBlock1(ClassBlock, Block1):
    """Block of the class token."""


class Part1Tagger(Part2Tagger):
    """Common part: that of the second transformer, made of other layers.

    Parameters
    ----------
    padding_keys : "hidden", or "upstream" for the function of B-Hive's own checkpoints, which is slower and depends on
        the configured number of candidates.
    """

    particle_block = ParticleBlock1
    class_block = ClassBlock1

    def __init__(
        self,
        config: Config,
        *,
        num_layers: int = 3,
        num_cls_layers: int = 1,
        embed_dim: int = 128,
        num_heads: int = 8,
        dropout: float = 0.1,
        padding_keys: str = PADDING_KEYS[0],
    ) -> None:
        if padding_keys not in PADDING_KEYS:
            msg = f"model {self.name}: padding_keys is {padding_keys!r}; give one of {', '.join(PADDING_KEYS)}"
            raise ModelError(msg)
        self.keeps_padding = padding_keys == "upstream"
        if self.keeps_padding:
            self.padding, self.laid_out = "configured", False
        super().__init__(
            config,
            num_layers=num_layers,
            num_cls_layers=num_cls_layers,
            embed_dim=embed_dim,
            num_heads=num_heads,
            dropout=dropout,
        )

    def embedding(self, n_features: int, embed_dim: int, dropout: float) -> nn.Module:
        """Convolutions with batch norms."""
        return ConvolutionEmbedding(n_features, embed_dim, dropout, nn.ReLU())

    def embedding_of_pairs(self, num_heads: int) -> PairEmbedding2:
        """Wider than in the second one, with another activation."""
        return PairEmbedding2(num_heads, PAIR_WIDTH * num_heads, nn.GELU())

    def forward(self, batch: Batch) -> Tensor | Outputs:
        """Logits [B,C], or `Outputs`."""
        if self.keeps_padding:
            tokens = self._padded_class_tokens(batch)
        else:
            found, layout = self.class_tokens(batch)
            tokens = layout.jets(found)
        jet: Tensor = self.norm(tokens)
        if self.jet_inputs:
            columns = self.jet_columns(batch, self.jet_inputs).to(jet.dtype)
            jet = torch.cat((jet, batch_norm(self.norm_global, columns)), dim=1)
        return self.outputs(self.head(jet))

    def _padded_class_tokens(self, batch: Batch) -> Tensor:
        """Class tokens [B,E] as B-Hive's own checkpoints were trained, from L candidates with padding.

        There a padded candidate is a key like any other whose score is raised, its pairs have features 0 and a bias all
        the same, and batch norms see it; only the class token does not.
        """
        mask = torch.cat([self.group_of(batch, name).mask for name in self.embeddings], dim=1)
        momenta = torch.cat([self.momenta(batch, name) for name in self.embeddings], dim=1)
        parts = [(embed, self.features(batch, name)) for name, embed in self.embeddings.items()]
        tokens = torch.cat([embed(rows.flatten(0, 1)).view(*rows.shape[:2], -1) for embed, rows in parts], dim=1)
        bias = self._padded_pair_bias(momenta, mask).to(tokens.dtype)
        bias = bias + RAISED_BY * (~mask).to(bias.dtype)[:, None, None, :]
        for block in cast("list[ParticleBlock1]", list(self.blocks)):
            tokens = block.added(tokens, block.attention(block.norm(tokens), bias))

        token = self.class_token.expand(len(mask), -1, -1)
        bias = hiding(F.pad(~mask, (1, 0)), tokens.dtype)[:, None, None]
        for last in cast("list[ClassBlock1]", list(self.class_blocks)):
            memory = last.norm_memory(torch.cat((token, tokens), dim=1))
            token = last.added(token, last.attention(memory, bias, query=last.norm_query(token)))
        return token.squeeze(1)

    def _padded_pair_bias(self, momenta: Tensor, mask: Tensor) -> Tensor:
        """Attention bias [B,H,L,L] of all pairs, those with padding too; a candidate with itself has bias zero.

        momenta : [B,L,4]; mask : bool [B,L], real candidates.
        """
        n_jets, length = mask.shape
        i, j = torch.tril_indices(length, length, -1, device=mask.device)
        start = torch.arange(n_jets, device=mask.device)[:, None] * length
        with torch.no_grad(), torch.autocast(momenta.device.type, enabled=False):
            kinematics = pair_kinematics(momenta.flatten(0, 1), (start + i).flatten(), (start + j).flatten())
            real = (mask[:, i] & mask[:, j]).flatten()[:, None]
            features = log1p_features(kinematics).masked_fill(~real, 0)
        values: Tensor = self.pair_embedding.embed(features.to(self.dtype))
        values = values.view(len(values), n_jets, -1).transpose(0, 1)
        bias = values.new_zeros(n_jets, len(values[0]), length, length)
        bias[:, :, i, j] = values
        bias[:, :, j, i] = values
        return bias


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
