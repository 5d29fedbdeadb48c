"""Particle Transformer as in the paper, on the 17 features of the JetClass data set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from bhive_mltf.models.base import Tagger, at_least, divisible, fraction
from bhive_mltf.models.classes import JETCLASS
from bhive_mltf.models.part.network import EXPANSION, PartNetwork
from bhive_mltf.models.resolve import GroupRequest

if TYPE_CHECKING:
    from bhive_mltf.config import Config
    from bhive_mltf.interface import Batch


class Feature(NamedTuple):
    """A column and how it is standardised: (value - shift) * scale, bounded to [low, high].

    names : of the column in a config, the first one found counts.
    """

    names: tuple[str, ...]
    shift: float = 0.0
    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf


JETCLASS_FEATURES: tuple[Feature, ...] = (
    Feature(("part_logpt",), 1.7, 0.7, -5, 5),
    Feature(("part_loge",), 2.0, 0.7, -5, 5),
    Feature(("part_logptrel", "part_logpt_rel"), -4.7, 0.7, -5, 5),
    Feature(("part_logerel", "part_loge_rel"), -4.7, 0.7, -5, 5),
    Feature(("part_deltaR",), 0.2, 4.0, -5, 5),
    Feature(("part_charge",)),
    Feature(("part_isChargedHadron",)),
    Feature(("part_isNeutralHadron",)),
    Feature(("part_isPhoton",)),
    Feature(("part_isElectron",)),
    Feature(("part_isMuon",)),
    Feature(("part_tanhd0val",)),
    Feature(("part_d0err",), low=0, high=1),
    Feature(("part_tanhdzval",)),
    Feature(("part_dzerr",), low=0, high=1),
    Feature(("part_deta",)),
    Feature(("part_dphi",)),
)
"""Features, order, shifts, scales and bounds of the JetClass data set's own configuration for ParT
(jet-universe/particle_transformer, data/JetClass/JetClass_full.yaml). Data sets keep the plain values."""


class Standardise(nn.Module):
    """The fixed standardisation of a table of features; nothing of it is in a state dict."""

    def __init__(self, features: tuple[Feature, ...]) -> None:
        super().__init__()
        table = torch.tensor([feature[1:] for feature in features])
        for name, column in zip(("shift", "scale", "low", "high"), table.unbind(1), strict=True):
            self.register_buffer(name, column.clone(), persistent=False)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Standardised features [B,N,F], zero where the mask [B,N] is False."""
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        bounded = torch.clamp((features - shift) * scale, self.get_buffer("low"), self.get_buffer("high"))
        return bounded.masked_fill(~mask[..., None], 0)


class ParticleTransformer_JetClass(Tagger):  # noqa: N801 - B-Hive names its models so
    """The paper's ParT for JetClass: 2,143,486 trainable parameters in its published size.

    Parameters
    ----------
    num_layers, num_cls_layers : particle blocks and class blocks.
    embed_dim : width E; the feature embedding has the widths (E, 4 E, E).
    num_heads : heads of each attention; must divide `embed_dim`.
    pair_embed_dim, num_pair_layers : width of the pair embedding, and its layers before the last one.
    dropout : in the particle blocks; class blocks have none.
    """

    classes = JETCLASS
    padding = "longest"
    laid_out = True
    groups = (GroupRequest("cpf", columns=tuple(feature.names for feature in JETCLASS_FEATURES), four_vectors=True),)

    def __init__(
        self,
        config: Config,
        *,
        num_layers: int = 8,
        num_cls_layers: int = 2,
        embed_dim: int = 128,
        num_heads: int = 8,
        pair_embed_dim: int = 64,
        num_pair_layers: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(config)
        at_least(self.name, 1, num_layers=num_layers, num_cls_layers=num_cls_layers, embed_dim=embed_dim)
        at_least(self.name, 1, num_heads=num_heads, pair_embed_dim=pair_embed_dim, num_pair_layers=num_pair_layers)
        fraction(self.name, dropout=dropout)
        divisible(self.name, embed_dim, num_heads)
        self.standardise = Standardise(JETCLASS_FEATURES)
        self.network = PartNetwork(
            len(JETCLASS_FEATURES),
            len(self.classes),
            embed_dims=(embed_dim, EXPANSION * embed_dim, embed_dim),
            pair_embed_dims=(pair_embed_dim,) * num_pair_layers,
            num_layers=num_layers,
            num_cls_layers=num_cls_layers,
            num_heads=num_heads,
            dropout=dropout,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B,10]."""
        batch = self.counted(batch)
        group = self.group_of(batch, "cpf")
        features = self.standardise(self.features(batch, "cpf"), group.mask)
        logits: Tensor = self.network(features, self.momenta(batch, "cpf"), group.counts)
        return logits
