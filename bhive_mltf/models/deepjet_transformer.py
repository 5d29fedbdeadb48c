"""DeepJetTransformer and its trigger versions: the blocks of the second transformer without pairs, attention pooling.

F. Blekman et al., "Tagging more quark jet flavours at FCC-ee at 91 GeV with a transformer-based neural network",
arXiv:2406.08590; sizes as in B-Hive. Padded candidates are hidden everywhere; batch norms see real ones only.
Version 1 of its function had ReLU for GELU in pooling and dense layers, and no dropout after pooling.
Axes: B jets, E width, C classes; R rows of a layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bhive_mltf.models.base import Outputs, Tagger, at_least, divisible, fraction
from bhive_mltf.models.classes import HLT, HLT_OUTPUTS, OFFLINE_UD
from bhive_mltf.models.deepjet import HLT_CPF, HLT_VTX
from bhive_mltf.models.layers import batch_norm
from bhive_mltf.models.layout import Layout
from bhive_mltf.models.part.v1 import HLT_JET, ConvolutionEmbedding
from bhive_mltf.models.part.v2 import NORM_EPS, ParticleBlock2, TokenEmbedding
from bhive_mltf.models.regression import HLT_COLUMNS, hlt_tagger_targets
from bhive_mltf.models.resolve import GLOBAL, GroupRequest

if TYPE_CHECKING:
    from bhive_mltf.config import Config
    from bhive_mltf.interface import Batch

CPF = (
    "Cpfcan_ptrel",
    "Cpfcan_drminsv",
    "Cpfcan_VTX_ass",
    "Cpfcan_quality",
    "Cpfcan_pt",
    "Cpfcan_eta",
    "Cpfcan_puppiw",
    "Cpfcan_chi2",
    "Cpfcan_phi",
    "Cpfcan_e",
)
VTX = (
    "sv_deltaR",
    "sv_normchi2",
    "sv_dxy",
    "sv_eta",
    "sv_phi",
    "sv_mass",
    "sv_ntracks",
    "sv_chi2",
    "sv_e",
)
HLT_GROUPS = (GroupRequest("cpf", columns=HLT_CPF, length=20), GroupRequest("vtx", columns=HLT_VTX, length=2))


class AttentionPooling(nn.Module):
    """Mean of the tokens of a jet with learned weights, activation, batch norm, dropout.

    The mean of a jet without candidates is zero.
    """

    def __init__(self, embed_dim: int, dropout: float = 0.0, function_version: int = 2) -> None:
        super().__init__()
        self.score = nn.Linear(embed_dim, 1)
        self.activation = _activation(function_version)
        self.norm = nn.BatchNorm1d(embed_dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout if function_version > 1 else 0.0)

    def forward(self, rows: Tensor, layout: Layout) -> Tensor:
        """[B,E] from rows [R,E]."""
        found = []
        scores = layout.split(self.score(rows))
        biases = layout.key_biases(scores[0].dtype)
        for score, bias, tokens, group in zip(scores, biases, layout.split(rows), layout.groups, strict=True):
            # a jet without candidates looks at its first slot, and sees zeros
            weights = (score.squeeze(2) + bias[0, :, 0]).softmax(1).masked_fill(group.hidden, 0)
            found.append((weights[:, None].to(tokens.dtype) @ tokens).squeeze(1))
        pooled: Tensor = self.dropout(batch_norm(self.norm, self.activation(layout.jets(torch.cat(found)))))
        return pooled


class ResidualDense(nn.Module):
    """Linear, activation, batch norm and dropout, added to the input; then another batch norm."""

    def __init__(self, width: int, dropout: float, function_version: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.activation = _activation(function_version)
        self.norm = nn.BatchNorm1d(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.norm_out = nn.BatchNorm1d(width, eps=NORM_EPS)

    def forward(self, jet: Tensor) -> Tensor:
        """[B,E] -> [B,E]."""
        return batch_norm(self.norm_out, jet + self.dropout(batch_norm(self.norm, self.activation(self.linear(jet)))))


def _activation(function_version: int) -> nn.Module:
    return nn.GELU() if function_version > 1 else nn.ReLU()


class DeepJetTransformerTagger(Tagger):
    """Common part: tokens of all groups, self-attention, one pooled vector per jet.

    jet_inputs : columns of the jet that join the pooled vector before the last layer.
    """

    padding = "longest"
    laid_out = True
    jet_inputs: tuple[str, ...] = ()

    def __init__(
        self,
        config: Config,
        *,
        num_layers: int = 3,
        embed_dim: int = 128,
        num_heads: int = 8,
        dropout: float = 0.1,
        function_version: int = 2,
    ) -> None:
        super().__init__(config)
        self.function_version = function_version
        at_least(self.name, 1, num_layers=num_layers, embed_dim=embed_dim, num_heads=num_heads)
        fraction(self.name, dropout=dropout)
        divisible(self.name, embed_dim, num_heads)
        self.embeddings = self.per_group(lambda n_features: self.embedding(n_features, embed_dim, dropout))
        self.blocks = nn.ModuleList(ParticleBlock2(embed_dim, num_heads, dropout) for _ in range(num_layers))
        self.pooling = AttentionPooling(embed_dim, dropout, function_version)
        self.dense = ResidualDense(embed_dim, dropout, function_version)
        n_jet = len(self.jet_inputs)
        self.norm_global = nn.BatchNorm1d(n_jet, eps=NORM_EPS) if n_jet else nn.Identity()
        self.head = nn.Linear(embed_dim + n_jet, self.n_outputs)

    def embedding(self, n_features: int, embed_dim: int, dropout: float) -> nn.Module:
        """Rows [M,F] -> [M,E] of one group."""
        return TokenEmbedding(n_features, embed_dim, dropout)

    def forward(self, batch: Batch) -> Tensor | Outputs:
        """Logits [B,C], or `Outputs`."""
        batch = self.counted(batch)
        layout = self.lay_out(batch, self.embeddings)
        rows = layout.rows(self.real_tokens(batch, self.embeddings, layout))
        biases = layout.key_biases(rows.dtype)
        for block in self.blocks:
            rows = block(rows, biases, layout)
        jet: Tensor = self.dense(self.pooling(rows, layout))
        if self.jet_inputs:
            columns = self.jet_columns(batch, self.jet_inputs).to(jet.dtype)
            jet = torch.cat((jet, batch_norm(self.norm_global, columns)), dim=1)
        return self.outputs(self.head(jet))


class DeepJetTransformer(DeepJetTransformerTagger):
    """Offline b tagging from its own charged and vertex columns and all neutral ones."""

    classes = OFFLINE_UD
    groups = (GroupRequest("cpf", columns=CPF), GroupRequest("npf"), GroupRequest("vtx", columns=VTX))

    def embedding(self, n_features: int, embed_dim: int, dropout: float) -> nn.Module:
        """Convolutions with batch norms."""
        return ConvolutionEmbedding(n_features, embed_dim, dropout, nn.GELU(), twice=False)


class DeepJetTransformerHLT(DeepJetTransformerTagger):
    """Trigger tagging from the columns of DeepJetHLT, 20 candidates and 2 vertices."""

    classes = HLT
    groups: tuple[GroupRequest, ...] = HLT_GROUPS


class GlobalDeepJetTransformerHLT(DeepJetTransformerHLT):
    """The same, with the four-momentum of the jet beside the pooled vector."""

    groups = (GroupRequest(GLOBAL, columns=HLT_JET), *HLT_GROUPS)
    jet_inputs = HLT_JET


class UDeepJetTransformerHLT(DeepJetTransformerHLT):
    """The same, and the jet's momentum at particle level. Loss: CrossEntropyLogCoshHLT."""

    groups = (GroupRequest(GLOBAL, columns=HLT_COLUMNS), *HLT_GROUPS)
    regression = HLT_OUTPUTS

    def regression_targets(self, batch: Batch) -> Tensor:
        """Targets [B,1]."""
        return hlt_tagger_targets(self, batch)
