"""The network of the Particle Transformer as published, without the choice of inputs.

H. Qu, C. Li, S. Qian, "Particle Transformer for Jet Tagging", arXiv:2202.03772; its blocks follow NormFormer
(arXiv:2110.09456), its class blocks CaiT (arXiv:2103.17239). Details that the paper leaves open are those of the
authors' published network.

Axes: B jets, N particles, F features, E width, H heads, P pairs, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bhive_mltf.models.kinematics import log_features, pair_kinematics
from bhive_mltf.models.layers import Attention, PairIndex, batch_norm, key_bias, spread_pairs, visible_keys
from bhive_mltf.models.part.packed import can_pack, packed_logits

EXPANSION = 4
"""Width of the feed-forward part over E."""


class FeatureEmbedding(nn.Module):
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

    def forward(self, features: Tensor) -> Tensor:
        """Tokens [B,N,E] from features [B,N,F]."""
        tokens: Tensor = self.layers(batch_norm(self.norm, features.flatten(0, 1)).view_as(features))
        return tokens


class PairEmbedding(nn.Module):
    """Pairs of particles -> attention bias of each head.

    All real pairs i >= j, self-pairs included, are computed once: padding never enters the batch norms.
    """

    n_features = 4

    def __init__(self, widths: Sequence[int], num_heads: int, final_activation: bool) -> None:
        super().__init__()
        sizes = (self.n_features, *widths, num_heads)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes)
        self.linears = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.activation = nn.GELU()
        self.final_activation = final_activation

    def forward(self, momenta: Tensor, mask: Tensor) -> Tensor:
        """Bias [B,H,N,N], zero where a particle is padded, from momenta [B,N,4] and mask [B,N]."""
        dtype = next(self.parameters()).dtype
        pairs = PairIndex.of(mask, with_self=True)
        with torch.no_grad(), torch.autocast(momenta.device.type, enabled=False):
            features = log_features(pair_kinematics(momenta.flatten(0, 1), pairs.first, pairs.second))
        values = batch_norm(self.norms[0], features.to(dtype))
        last = len(self.linears) - 1
        for step, linear in enumerate(self.linears):
            values = batch_norm(self.norms[step + 1], linear(values))
            if step < last or self.final_activation:
                values = self.activation(values)
        return spread_pairs(values, pairs, *mask.shape)


class ResidualParts(nn.Module):
    """What particle and class blocks have in common: scaled heads, feed-forward part, scaled residuals."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_before_attention = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads, dropout)
        self.head_scale = nn.Parameter(torch.ones(num_heads))
        self.norm_after_attention = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

        self.norm_before_expansion = nn.LayerNorm(embed_dim)
        self.expand = nn.Linear(embed_dim, EXPANSION * embed_dim)
        self.activation = nn.GELU()
        self.norm_expanded = nn.LayerNorm(EXPANSION * embed_dim)
        self.contract = nn.Linear(EXPANSION * embed_dim, embed_dim)
        self.residual_scale = nn.Parameter(torch.ones(embed_dim))
        for linear in (self.expand, self.contract, self.attention.project_out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def add_attended(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Tokens plus what attention gave, its heads scaled after the output projection."""
        n_jets, length, width = attended.shape
        heads = attended.reshape(n_jets, length, len(self.head_scale), width // len(self.head_scale))
        scaled = (heads * self.head_scale[:, None]).flatten(-2)
        added: Tensor = tokens + self.dropout(self.norm_after_attention(scaled))
        return added

    def add_feed_forward(self, tokens: Tensor) -> Tensor:
        """Scaled tokens plus their feed-forward part."""
        hidden = self.dropout(self.activation(self.expand(self.norm_before_expansion(tokens))))
        added: Tensor = self.residual_scale * tokens + self.dropout(self.contract(self.norm_expanded(hidden)))
        return added


class ParticleBlock(ResidualParts):
    """Self-attention of the particles of a jet with the pair bias."""

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Tokens [B,N,E] from tokens and bias [B,H,N,N] (-inf: hidden key)."""
        attended = self.attention(self.norm_before_attention(tokens), bias)
        return self.add_feed_forward(self.add_attended(tokens, attended))


class ClassBlock(ResidualParts):
    """Attention of the class token, not normalised as a query, to itself and all particles."""

    def forward(self, token: Tensor, tokens: Tensor, bias: Tensor) -> Tensor:
        """Class token [B,1,E] from the class token, tokens [B,N,E] and bias [B,1,1,1+N]."""
        memory = self.norm_before_attention(torch.cat((token, tokens), dim=1))
        return self.add_feed_forward(self.add_attended(token, self.attention(memory, bias, query=token)))


class PartNetwork(nn.Module):
    """Particle Transformer: features and four-momenta of particles -> logits.

    Parameters
    ----------
    embed_dims : widths of the feature embedding; the last one is E.
    pair_embed_dims : widths of the pair embedding before its last layer, which has one output per head.
    dropout : after attention, inside it and in the feed-forward part of particle blocks; class blocks have none.
    final_pair_activation : GELU after the last layer of the pair embedding too, as in the published network.
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

    def forward(self, features: Tensor, momenta: Tensor, mask: Tensor) -> Tensor:
        """Logits [B,C].

        features : [B,N,F], zero where padded. momenta : [B,N,4], (px, py, pz, E). mask : bool [B,N].
        """
        if can_pack(self, features):
            return packed_logits(self, features, momenta, mask)
        tokens = self.embedding(features).masked_fill(~mask[..., None], 0)
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
