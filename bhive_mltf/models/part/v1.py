"""B-Hive's first Particle Transformer, its trigger versions, and UParT.

Embeddings of convolutions and batch norms, blocks after NormFormer (arXiv:2110.09456), ln(1 + x) pair features
(arXiv:2202.03772). Batch norms see real candidates and pairs only, unlike upstream's.
Axes: B jets, F columns, E width, H heads, C classes; M real candidates and R rows of a layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from bhive_mltf.errors import ModelError
from bhive_mltf.models.base import Outputs, Tagger, at_least, divisible, fraction
from bhive_mltf.models.classes import HLT, OFFLINE, OFFLINE_OUTPUTS
from bhive_mltf.models.layers import Attention, RowWise, batch_norm, row_wise
from bhive_mltf.models.layout import Layout
from bhive_mltf.models.part import upstream_padding
from bhive_mltf.models.part.v2 import PairEmbedding2
from bhive_mltf.models.regression import OFFLINE_COLUMNS, offline_targets
from bhive_mltf.models.resolve import GLOBAL, GroupRequest

if TYPE_CHECKING:
    from bhive_mltf.config import Config
    from bhive_mltf.interface import Batch, Padding

NORM_EPS = 1e-3
EXPANSION = 4
PAIR_WIDTH = 6  # times the number of heads
PADDING_KEYS = ("hidden", "upstream")
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


class Block1(RowWise):
    """The normalised sum of tokens and attention is what the feed-forward part is added to."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self._norms(embed_dim)
        self.attention = Attention(embed_dim, num_heads, dropout)
        self.norm_sum = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim, dropout)

    def _norms(self, embed_dim: int) -> None:
        raise NotImplementedError

    @row_wise
    def _after_attention(self, tokens: Tensor, attended: Tensor) -> Tensor:
        tokens = self.norm_sum(tokens + self.attention.project_out(attended))
        added: Tensor = tokens + self.feed_forward(tokens)
        return added


class ParticleBlock1(Block1):
    """Self-attention with the pair bias."""

    def _norms(self, embed_dim: int) -> None:
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, rows: Tensor, biases: Sequence[Tensor], layout: Layout) -> Tensor:
        """Rows [R,E] from rows and the bias of each group [H,S,L,L]."""
        return self._after_attention(rows, self.attention.among_rows(self._projected(rows), biases, layout))

    @row_wise
    def _projected(self, rows: Tensor) -> Tensor:
        projected: Tensor = self.attention.project_in(self.norm(rows))
        return projected


class ClassBlock1(Block1):
    """Attention of the class token to itself and all candidates."""

    def _norms(self, embed_dim: int) -> None:
        self.norm_query = nn.LayerNorm(embed_dim)
        self.norm_memory = nn.LayerNorm(embed_dim)

    def forward(self, token: Tensor, rows: Tensor, layout: Layout) -> Tensor:
        """Class tokens [B,E] from them and rows [R,E]."""
        return self._after_attention(token, self.attention.to_rows(*self._projected(token, rows), layout))

    @row_wise
    def _projected(self, token: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention, norm = self.attention, self.norm_memory
        own, others = (attention.keys_and_values(norm(values)) for values in (token, rows))
        return attention.queries(self.norm_query(token)), own, others


class Part1Tagger(Tagger):
    """Common part: the candidates of all groups become tokens of one sequence.

    jet_inputs : columns of the jet that join the class token before the last layer.

    Parameters
    ----------
    padding_keys : "hidden", or "upstream" for the function of B-Hive's own checkpoints (`part.upstream_padding`), which
        is slower and depends on the configured number of candidates.
    """

    padding: Padding = "longest"
    laid_out = True
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
        padding_keys: str = PADDING_KEYS[0],
    ) -> None:
        if padding_keys not in PADDING_KEYS:
            msg = f"model {self.name}: padding_keys is {padding_keys!r}; give one of {', '.join(PADDING_KEYS)}"
            raise ModelError(msg)
        self.keeps_padding = padding_keys == "upstream"
        if self.keeps_padding:
            self.padding, self.laid_out = "configured", False
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
        jet: Tensor = self.norm(self._class_tokens(batch))
        if self.jet_inputs:
            columns = self.jet_columns(batch, self.jet_inputs).to(jet.dtype)
            jet = torch.cat((jet, batch_norm(self.norm_global, columns)), dim=1)
        return self.outputs(self.head(jet))

    def _class_tokens(self, batch: Batch) -> Tensor:
        """[B,E]."""
        names = list(self.embeddings)
        if self.keeps_padding:
            return self._padded_class_tokens(batch, names)
        batch = self.counted(batch)
        layout = self.lay_out(batch, names, "others")
        features = self.real_features(batch, names, layout)
        tokens = [embed(rows) for embed, rows in zip(self.embeddings.values(), features, strict=True)]
        rows = layout.rows(torch.cat(tokens))
        biases = self.pair_embedding(self.real_momenta(batch, names, layout), layout)
        for block in self.blocks:
            rows = block(rows, biases, layout)

        token = self.class_token[0].expand(len(layout.order), -1)
        for block in self.class_blocks:
            token = block(token, rows, layout)
        return layout.jets(token)

    def _padded_class_tokens(self, batch: Batch, names: Sequence[str]) -> Tensor:
        """The same as B-Hive computes it, [B,E]."""
        mask = torch.cat([self.group_of(batch, name).mask for name in names], dim=1)
        momenta = torch.cat([self.momenta(batch, name) for name in names], dim=1)
        tokens = upstream_padding.embedded(
            list(self.embeddings.values()), [self.features(batch, name) for name in names]
        )
        bias = upstream_padding.pair_bias(self.pair_embedding, momenta, mask).to(tokens.dtype)
        tokens = upstream_padding.attended(cast("list[ParticleBlock1]", list(self.blocks)), tokens, bias, mask)
        class_blocks = cast("list[ClassBlock1]", list(self.class_blocks))
        return upstream_padding.summarised(class_blocks, self.class_token, tokens, mask)


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
