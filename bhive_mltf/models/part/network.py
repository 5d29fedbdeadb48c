"""The network of the Particle Transformer as published, without the choice of inputs.

H. Qu, C. Li, S. Qian, "Particle Transformer for Jet Tagging", arXiv:2202.03772; its blocks follow NormFormer
(arXiv:2110.09456), its class blocks CaiT (arXiv:2103.17239). Details that the paper leaves open are those of the
authors' published network. Jets lie as `models.layout` says, the same way on every device.

Axes: B jets, N candidates as loaded, F features, E width, H heads, R rows, P pairs, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bhive_mltf.models.kinematics import log_features, pair_kinematics
from bhive_mltf.models.layers import Attention, RowWise, batch_norm, dropped, row_wise
from bhive_mltf.models.layout import Counts, Layout, lay_out

EXPANSION = 4
"""Width of the feed-forward part over E."""


class FeatureEmbedding(RowWise):
    """Features -> tokens: batch norm, then LayerNorm, Linear and GELU for each width.

    The batch norm sees all B x N positions, padded zeros included, as in the published network.
    """

    def __init__(self, n_features: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(n_features)
        layers: list[nn.Module] = []
        for before, after in pairwise((n_features, *widths)):
            layers += [nn.LayerNorm(before), nn.Linear(before, after), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor, layout: Layout) -> Tensor:
        """Tokens [R,E] from features [B,N,F]."""
        return self._embed(layout.rows(batch_norm(self.norm, features.flatten(0, 1))))

    @row_wise
    def _embed(self, rows: Tensor) -> Tensor:
        tokens: Tensor = self.layers(rows)
        return tokens


class PairEmbedding(RowWise):
    """Pairs of particles -> attention bias of each head.

    All real pairs i >= j, self-pairs included, are computed once: padding never enters the batch norms.
    """

    n_features = 4

    def __init__(self, widths: Sequence[int], num_heads: int, final_activation: bool) -> None:
        super().__init__()
        sizes = (self.n_features, *widths, num_heads)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes)
        self.linears = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.final_activation = final_activation

    @row_wise
    def forward(self, features: Tensor) -> Tensor:
        """Values [H,P] from the features [P,4] of pairs."""
        values = batch_norm(self.norms[0], features)
        last = len(self.linears) - 1
        for step, linear in enumerate(self.linears):
            values = batch_norm(self.norms[step + 1], linear(values))
            if step < last or self.final_activation:
                values = F.gelu(values)
        return values.t()


class Block(RowWise):
    """What particle and class blocks have in common: scaled heads, feed-forward part, scaled residuals."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm_before_attention = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads, dropout)
        self.head_scale = nn.Parameter(torch.ones(num_heads))
        self.norm_after_attention = nn.LayerNorm(embed_dim)

        self.norm_before_expansion = nn.LayerNorm(embed_dim)
        self.expand = nn.Linear(embed_dim, EXPANSION * embed_dim)
        self.norm_expanded = nn.LayerNorm(EXPANSION * embed_dim)
        self.contract = nn.Linear(EXPANSION * embed_dim, embed_dim)
        self.residual_scale = nn.Parameter(torch.ones(embed_dim))
        for linear in (self.expand, self.contract, self.attention.project_out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    @property
    def rate(self) -> float:
        """Dropout after attention and in the feed-forward part."""
        return self.dropout if self.training else 0.0

    @row_wise
    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Rows [M,E] from those before the block and what attention gives before its output projection."""
        out, rate = self.attention.project_out, self.rate
        scale = self.head_scale[:, None].expand(-1, x.shape[1] // len(self.head_scale)).flatten()
        # heads are scaled after the projection, which therefore takes their factors
        scaled = F.linear(attended, out.weight * scale[:, None], out.bias * scale)
        normed, factor = dropped(self.norm_after_attention(scaled), rate)
        x = torch.add(x, normed, alpha=factor)
        hidden, factor = dropped(F.gelu(self.expand(self.norm_before_expansion(x))), rate)
        norm = self.norm_expanded
        # a norm does not see a factor, but for its epsilon
        hidden = F.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps / factor**2)
        added, factor = dropped(self.contract(hidden), rate)
        return torch.add(self.residual_scale * x, added, alpha=factor)


class ParticleBlock(Block):
    """Self-attention of the particles of a jet with the pair bias."""

    def forward(self, x: Tensor, biases: Sequence[Tensor], layout: Layout) -> Tensor:
        """Rows [R,E] from rows and the bias of each group [H,S,L,L]."""
        return self._after_attention(x, self.attention.among_rows(self._projected(x), biases, layout))

    @row_wise
    def _projected(self, x: Tensor) -> Tensor:
        projected: Tensor = self.attention.project_in(self.norm_before_attention(x))
        return projected


class ClassBlock(Block):
    """Attention of the class token, not normalised as a query, to itself and all particles."""

    def forward(self, token: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """Class tokens [B,E] from them and rows [R,E]."""
        query, own, rows = self._projected(token, x)
        return self._after_attention(token, self.attention.to_rows(query, own, rows, layout))

    @row_wise
    def _projected(self, token: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention, norm = self.attention, self.norm_before_attention
        return attention.queries(token), attention.keys_and_values(norm(token)), attention.keys_and_values(norm(x))


class PartNetwork(nn.Module):
    """Particle Transformer: features and four-momenta of particles -> logits.

    Parameters
    ----------
    embed_dims : widths of the feature embedding; the last one is E.
    pair_embed_dims : widths of the pair embedding before its last layer, which has one output per head.
    dropout : after attention, inside it and in the feed-forward part of particle blocks; class blocks have none.
    final_pair_activation : whether the last layer of the pair embedding has a GELU too.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        embed_dims: Sequence[int] = (128, 512, 128),
        pair_embed_dims: Sequence[int] = (64, 64, 64),
        num_layers: int = 8,
        num_cls_layers: int = 2,
        num_heads: int = 8,
        dropout: float = 0.1,
        final_pair_activation: bool = True,
    ) -> None:
        super().__init__()
        embed_dim = embed_dims[-1]
        self.embedding = FeatureEmbedding(n_features, embed_dims)
        self.pair_embedding = PairEmbedding(pair_embed_dims, num_heads, final_pair_activation)
        self.blocks = nn.ModuleList(ParticleBlock(embed_dim, num_heads, dropout) for _ in range(num_layers))
        self.class_blocks = nn.ModuleList(ClassBlock(embed_dim, num_heads, 0.0) for _ in range(num_cls_layers))
        self.class_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, n_classes)
        self._initialise()

    def forward(self, features: Tensor, momenta: Tensor, counts: Counts) -> Tensor:
        """Logits [B,C].

        Parameters
        ----------
        features : [B,N,F], zero where padded; momenta : [B,N,4], (px, py, pz, E).
        counts : int64 [B], on the host: particles of each jet, which are the first ones of its N.
        """
        layout = lay_out(np.asarray(counts)[None], features.shape[1:2], features.device, "all", packed=False)
        return self.logits(features, momenta, layout)

    def logits(self, features: Tensor, momenta: Tensor, layout: Layout) -> Tensor:
        """The same of particles that are laid out already, with all pairs."""
        biases = layout.pair_biases(self.pair_embedding(self._pair_features(momenta, layout)))
        x = self.embedding(features, layout)
        for block in self.blocks:
            x = block(x, biases, layout)

        token = self.class_token[0].expand(len(layout.order), -1)
        for block in self.class_blocks:
            token = block(token, x, layout)
        return layout.jets(self.head(self.norm(token)))

    @torch.no_grad()
    def _pair_features(self, momenta: Tensor, layout: Layout) -> Tensor:
        """[P,4], never in less than float32."""
        with torch.autocast(momenta.device.type, enabled=False):
            features = log_features(pair_kinematics(layout.rows(momenta.flatten(0, 1)), layout.first, layout.second))
        return features.to(self.head.weight.dtype)

    def _initialise(self) -> None:
        """Xavier-uniform linear maps without offsets; residual branches of layer l start smaller by sqrt(2 l)."""
        nn.init.trunc_normal_(self.class_token, std=0.02)
        for linear in (*self.embedding.layers, self.head):
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
        with torch.no_grad():
            for depth, block in enumerate(self.blocks, start=1):
                for name in ("attention.project_out", "contract"):
                    block.get_submodule(name).get_parameter("weight").div_((2 * depth) ** 0.5)
