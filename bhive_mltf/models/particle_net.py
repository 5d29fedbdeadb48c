"""ParticleNet on the candidates of all groups, neighbours taken in feature space.

H. Qu, L. Gouskos, "ParticleNet: Jet Tagging via Particle Clouds", arXiv:1902.08570; dynamic graphs: arXiv:1801.07829;
sizes as in B-Hive. Neighbours are real candidates only, and a jet with fewer than k others uses all of them: padding
enters neither the graph nor a batch norm. Version 1 of its function had no dropout in the embeddings, another epsilon
in their batch norms, and took the first neighbours behind the batch norm of the tokens.
Axes: B jets, F columns, M real candidates of the batch, P edges, S jets and L slots of a group, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bhive_mltf.models.base import Outputs, Tagger, at_least, fraction
from bhive_mltf.models.classes import HLT, HLT_OUTPUTS, OFFLINE
from bhive_mltf.models.deepjet import HLT_CPF, HLT_VTX
from bhive_mltf.models.layers import RowWise, batch_norm, row_wise
from bhive_mltf.models.layout import Layout, entries
from bhive_mltf.models.regression import HLT_COLUMNS, hlt_tagger_targets
from bhive_mltf.models.resolve import GLOBAL, GroupRequest

if TYPE_CHECKING:
    from bhive_mltf.config import Config
    from bhive_mltf.interface import Batch

EXPANSION = 4
EDGE_WIDTHS = ((128, 128, 128), (256, 256, 256))
FUSION = 384
DENSE = (256, 128)
EMBEDDING_EPS = 1e-3
_FORMER_EPS = 1e-5


class Edges(NamedTuple):
    """Edges of the graphs of all jets: int32 [P], the centre and the neighbour, as real candidates."""

    centre: Tensor
    neighbour: Tensor


def n_neighbours(layout: Layout, k: int) -> Tensor:
    """How many neighbours each real candidate has, [M]."""
    of_jets = (layout.n - 1).clamp(max=k).index_select(0, layout.place)
    return of_jets.index_select(0, layout.jet)


def nearest_neighbours(values: Tensor, layout: Layout, k: int) -> Edges:
    """Edges from each real candidate to the k others of its jet that are nearest in feature space, or to all.

    values : [M,F].
    """
    counts, found, start = layout.counts, [], 0
    parts = zip(layout.split(layout.rows(values.detach())), layout.groups, strict=True)
    for points, group in parts:
        here = slice(start, start + group.jets)
        n, row = layout.n[here], layout.row[here]
        total = int((counts[here] * np.clip(counts[here] - 1, 0, k)).sum())
        many = n * (n - 1).clamp(min=0, max=k)
        jet, entry = entries(many, many.cumsum(0).int() - many, total)
        per_centre = (n - 1).clamp(min=1, max=k).index_select(0, jet)
        centre = torch.div(entry, per_centre, rounding_mode="floor")
        number = entry - centre * per_centre
        if counts[here].max() > k + 1:
            nearest = _by_distance(points, group.hidden, k)
            place = (jet * group.length + centre) * nearest.shape[2] + number
            neighbour = nearest.flatten().index_select(0, place)
        else:
            neighbour = number + (number >= centre).int()
        first = row.index_select(0, jet)
        found.append(torch.stack((first + centre, first + neighbour)))
        start += group.jets
    edges = torch.cat(found, 1)
    return Edges(*(layout.source.index_select(0, rows) for rows in edges))


def _by_distance(points: Tensor, hidden: Tensor, k: int) -> Tensor:
    """The k nearest slots [S,L,k] of each slot of [S,L,F], hidden ones and itself last."""
    length = points.shape[1]
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    itself = torch.eye(length, dtype=torch.bool, device=points.device)
    distance = distance.masked_fill(hidden[:, None] | itself, float("inf"))
    return distance.topk(min(k, length), dim=2, largest=False).indices.int()


def mean_by(place: Tensor, values: Tensor, counts: Tensor) -> Tensor:
    """Means [len(counts),F] of the values [P,F] at each place [P], at least float32; zero where there are none."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    total = values.new_zeros(len(counts), values.shape[1]).index_add(0, place, values)
    return total / counts.clamp(min=1)[:, None].to(total.dtype)


class EdgeConvolution(RowWise):
    """Three layers on (candidate, neighbour - candidate), mean over neighbours, shortcut, ReLU.

    The first layer is linear in both, so it is computed per candidate and added per edge.
    """

    def __init__(self, before: int, widths: Sequence[int], k: int) -> None:
        super().__init__()
        self.k = k
        sizes = (2 * before, *widths)
        self.linears = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)
        same = before == widths[-1]
        self.shortcut = nn.Identity() if same else nn.Linear(before, widths[-1], bias=False)
        self.norm_shortcut = nn.Identity() if same else nn.BatchNorm1d(widths[-1])

    def forward(self, rows: Tensor, layout: Layout, points: Tensor) -> Tensor:
        """[M,before] -> [M,after], with the neighbours that are nearest among `points` [M,F]."""
        edges = nearest_neighbours(points, layout, self.k)
        own, difference = self.linears[0].get_parameter("weight").chunk(2, dim=1)
        centres, neighbours = F.linear(rows, own - difference), F.linear(rows, difference)
        values = centres.index_select(0, edges.centre) + neighbours.index_select(0, edges.neighbour)
        mean = mean_by(edges.centre, self._convolved(values), n_neighbours(layout, self.k)).to(values.dtype)
        shortcut = self.shortcut(rows)
        if isinstance(self.shortcut, nn.Linear):
            shortcut = batch_norm(self.norm_shortcut, shortcut)
        joined: Tensor = (shortcut + mean).relu()
        return joined

    @row_wise
    def _convolved(self, values: Tensor) -> Tensor:
        values = batch_norm(self.norms[0], values).relu()
        for linear, norm in zip(self.linears[1:], self.norms[1:], strict=True):
            values = batch_norm(norm, linear(values)).relu()
        return values


class CandidateEmbedding(RowWise):
    """Features of one group -> tokens: batch norm; linear map, GELU, batch norm and dropout of widths E, 4 E, E."""

    def __init__(self, n_features: int, embed_dim: int, dropout: float, function_version: int) -> None:
        super().__init__()
        eps = EMBEDDING_EPS if function_version > 1 else _FORMER_EPS
        self.norm_in = nn.BatchNorm1d(n_features, eps=eps)
        sizes = (n_features, embed_dim, EXPANSION * embed_dim, embed_dim)
        self.linears = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(size, eps=eps) for size in sizes[1:])
        self.dropout = nn.Dropout(dropout if function_version > 1 else 0.0)

    @row_wise
    def forward(self, rows: Tensor) -> Tensor:
        """Rows [M,F] of real candidates -> [M,E]."""
        rows = batch_norm(self.norm_in, rows)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            rows = self.dropout(batch_norm(norm, F.gelu(linear(rows))))
        return rows


class ParticleNetTagger(Tagger):
    """Common part: tokens of all groups, two edge convolutions, their fusion, mean over candidates, dense layers.

    Parameters
    ----------
    embed_dim : width of the tokens.
    k : neighbours of each candidate, at most.
    dropout : in the embeddings and the dense layers.
    """

    padding = "longest"
    laid_out = True

    def __init__(
        self,
        config: Config,
        *,
        embed_dim: int = 128,
        k: int = 50,
        dropout: float = 0.1,
        function_version: int = 2,
    ) -> None:
        super().__init__(config)
        self.function_version = function_version
        at_least(self.name, 1, embed_dim=embed_dim, k=k)
        fraction(self.name, dropout=dropout)
        self.embeddings = self.per_group(lambda n: CandidateEmbedding(n, embed_dim, dropout, function_version))
        self.norm_in = nn.BatchNorm1d(embed_dim)
        inputs = (embed_dim, *(widths[-1] for widths in EDGE_WIDTHS))
        self.convolutions = nn.ModuleList(
            EdgeConvolution(before, widths, k) for before, widths in zip(inputs[:-1], EDGE_WIDTHS, strict=True)
        )
        self.fusion = nn.Linear(sum(inputs[1:]), FUSION, bias=False)
        self.norm_fusion = nn.BatchNorm1d(FUSION)
        self.dense = nn.Sequential()
        for before, after in pairwise((FUSION, *DENSE)):
            self.dense.extend((nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)))
        self.head = nn.Linear(DENSE[-1], self.n_outputs)

    def forward(self, batch: Batch) -> Tensor | Outputs:
        """Logits [B,C], or `Outputs`."""
        batch = self.counted(batch)
        layout = self.lay_out(batch, self.embeddings)
        embedded = self.real_tokens(batch, self.embeddings, layout)
        rows = batch_norm(self.norm_in, embedded)
        points, layers = (embedded if self.function_version > 1 else rows), []
        for convolution in self.convolutions:
            rows = points = convolution(rows, layout, points)
            layers.append(rows)
        fused = batch_norm(self.norm_fusion, self.fusion(torch.cat(layers, dim=1))).relu()
        mean = mean_by(layout.jet, fused, layout.n.index_select(0, layout.place))[: layout.n_jets]
        return self.outputs(self.head(self.dense(mean)))


class ParticleNet_InPro(ParticleNetTagger):  # noqa: N801 - B-Hive names its models so
    """Offline b tagging from all columns of charged and neutral candidates and vertices."""

    classes = OFFLINE
    groups = tuple(GroupRequest(name) for name in ("cpf", "npf", "vtx"))


class ParticleNet_InProHLT(ParticleNetTagger):  # noqa: N801
    """Trigger tagging from the columns of DeepJetHLT."""

    classes = HLT
    groups: tuple[GroupRequest, ...] = (GroupRequest("cpf", columns=HLT_CPF), GroupRequest("vtx", columns=HLT_VTX))


class UParticleNet_InProHLT(ParticleNet_InProHLT):  # noqa: N801
    """The same, and the jet's momentum at particle level. Loss: CrossEntropyLogCoshHLT."""

    groups = (GroupRequest(GLOBAL, columns=HLT_COLUMNS), *ParticleNet_InProHLT.groups)
    regression = HLT_OUTPUTS

    def regression_targets(self, batch: Batch) -> Tensor:
        """Targets [B,1]."""
        return hlt_tagger_targets(self, batch)
