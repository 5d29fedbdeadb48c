"""Models as functions of padded arrays, without sizes that depend on values: what is exported.

In training, candidates lie as `models.layout` says, by counts that the host knows. The function here is the same one,
with all slots of a jet side by side and the padded ones hidden: in evaluation no layer mixes candidates but attention,
neighbours and means, which all see the mask.

Axes: B jets, N slots of a group, L slots of all groups together, F columns, E width, H heads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bhive_mltf.errors import ModelError
from bhive_mltf.interface import Batch, GroupBatch, GroupInput
from bhive_mltf.models.base import Outputs, Tagger
from bhive_mltf.models.layers import batch_norm
from bhive_mltf.models.layout import JetGroup, Pairs, hiding
from bhive_mltf.models.part.jetclass import ParticleTransformer_JetClass
from bhive_mltf.models.particle_net import EdgeConvolution, ParticleNetTagger
from bhive_mltf.models.resolve import GLOBAL


@dataclass(frozen=True)
class Port:
    """An input array of the exported function.

    name : `<group>_features`, `<group>_four_vectors` or `<group>_n`. what : the part of its name behind the group.
    """

    name: str
    group: str
    what: str


def ports(model: Tagger) -> tuple[Port, ...]:
    """The inputs of the exported function of a model, in order.

    `<group>_features` float32 [B,N,F] (`global`: [B,F]), `<group>_four_vectors` float32 [B,N,4] for models that read
    them, `<group>_n` int64 [B], candidates of each jet, for models that do not see padding.
    """
    found = []
    # B-Hive's own checkpoints see padding in some layers, and their mask in others
    counted = model.padding == "longest" or getattr(model, "keeps_padding", False)
    for group in model.inputs.groups:
        wanted = ["features", *(["four_vectors"] if group.four_vectors else [])]
        if counted and group.name != GLOBAL:
            wanted.append("n")
        found += [Port(f"{group.name}_{what}", group.name, what) for what in wanted]
    return tuple(found)


class PaddedLayout:
    """The candidates of a batch, all slots of all groups side by side; takes the place of `models.layout.Layout`.

    hidden : bool [B,L], slots without a candidate.
    """

    def __init__(self, groups: Sequence[GroupBatch], pairs: Pairs) -> None:
        self._lengths = [group.mask.shape[1] for group in groups]
        self.hidden = ~torch.cat([group.mask for group in groups], 1)
        n_jets, length = self.hidden.shape
        none = self.hidden.new_zeros(0, dtype=torch.int32)
        self.n_jets, self.length, self.pairs = n_jets, length, pairs
        self.groups = (JetGroup(n_jets, length, self.hidden, none, none, none),)
        # the class token is expanded to as many jets as this has
        self.order = self.hidden[:, 0]
        rows = torch.arange(length, device=self.hidden.device)
        start = torch.arange(n_jets, device=self.hidden.device)[:, None, None] * length
        square = (n_jets, length, length)
        self.first = (start + rows[:, None]).expand(square).reshape(-1)
        self.second = (start + rows).expand(square).reshape(-1)

    def rows(self, values: Tensor) -> Tensor:
        """Values of all groups, group behind group [sum of B*N,E], as rows [B*L,E], jet behind jet."""
        parts = torch.split(values, [self.n_jets * length for length in self._lengths])
        jets = [part.reshape(self.n_jets, length, -1) for part, length in zip(parts, self._lengths, strict=True)]
        return torch.cat(jets, 1).flatten(0, 1)

    def split(self, rows: Tensor) -> list[Tensor]:
        """Rows [B*L,E] as [B,L,E]."""
        return [rows.reshape(self.n_jets, self.length, -1)]

    def jets(self, values: Tensor) -> Tensor:
        """Values [B,E] of jets, as they are."""
        return values

    def key_biases(self, dtype: torch.dtype) -> tuple[Tensor]:
        """[1,B,1,L], -inf where the key is hidden."""
        return (hiding(self._unseen(), dtype)[None, :, None],)

    def pair_biases(self, values: Tensor) -> tuple[Tensor]:
        """Values [H,B*L*L] of pairs as a bias [H,B,L,L]: 0 for two slots that are no pair, -inf for a hidden key."""
        bias = values.reshape(-1, self.n_jets, self.length, self.length)
        is_pair = ~self.hidden[:, :, None] & ~self.hidden[:, None]
        if self.pairs == "others":
            is_pair = is_pair & ~_diagonal(self.length, self.hidden.device)
        bias = torch.where(is_pair, bias, torch.zeros_like(bias))
        return (bias + hiding(self._unseen(), bias.dtype)[None, :, None],)

    def _unseen(self) -> Tensor:
        """Hidden slots, but for the first one of a jet without candidates: a softmax over nothing is NaN."""
        first = torch.arange(self.length, device=self.hidden.device) == 0
        return self.hidden & ~(first & self.hidden.all(1, keepdim=True))


def _diagonal(length: int, device: torch.device) -> Tensor:
    """[length,length], True for a slot with itself; onnxruntime has no `torch.eye` of booleans."""
    slots = torch.arange(length, device=device)
    return slots[:, None] == slots


class ExportedModel(nn.Module):
    """A model as a function of arrays: `ports` in, probabilities [B,C] out, and [B,R] of its regression.

    Raises
    ------
    ModelError : a model whose function of padded arrays is not known (one of another package).
    """

    def __init__(self, model: Tagger) -> None:
        super().__init__()
        self.model = prepared(model)
        self.ports = ports(model)

    def forward(self, *arrays: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        output = self.model(self._batch(arrays))
        if isinstance(output, Outputs):
            return output.logits.float().softmax(1), output.regression.float()
        return cast("Tensor", output).float().softmax(1)

    def _batch(self, arrays: Sequence[Tensor]) -> Batch:
        given = {port.name: array for port, array in zip(self.ports, arrays, strict=True)}
        groups = {group.name: self._group(group, given) for group in self.model.inputs.groups}
        jet = arrays[0].new_zeros(arrays[0].shape[0], 2)
        number = jet[:, 0].long()
        return Batch(groups, number, jet[:, 0], jet.long(), number, jet, 0)

    def _group(self, group: GroupInput, given: dict[str, Tensor]) -> GroupBatch:
        features, vectors = given[f"{group.name}_features"], given.get(f"{group.name}_four_vectors")
        if group.name == GLOBAL:
            features, vectors = features[:, None], None if vectors is None else vectors[:, None]
        elif self.model.padding == "configured":
            features = _to_length(features, group.length)
            vectors = None if vectors is None else _to_length(vectors, group.length)
        slots = torch.arange(features.shape[1], device=features.device)
        n = given.get(f"{group.name}_n")
        mask = (slots >= 0).expand(features.shape[:2]) if n is None else slots < n[:, None]
        return GroupBatch(features, mask, group.columns, vectors)


def _to_length(values: Tensor, length: int) -> Tensor:
    """[B,N,F] with zeros behind it, or cut, to [B,length,F]."""
    return torch.cat((values, values.new_zeros(values.shape[0], length, values.shape[2])), 1)[:, :length]


def prepared(model: Tagger) -> Tagger:
    """A copy of a model, in evaluation mode on the CPU, whose forward takes padded batches without counts."""
    own = copy.deepcopy(model).float().cpu().eval()
    for parameter in own.parameters():
        parameter.requires_grad_(False)
    known: Any = own  # methods are replaced on this copy alone
    if isinstance(own, ParticleTransformer_JetClass):
        known.forward = lambda batch: _part_logits(own, batch)
    elif isinstance(own, ParticleNetTagger):
        known.forward = lambda batch: _particle_net(own, batch)
    elif own.laid_out:
        known.counted = lambda batch: batch
        known.lay_out = lambda batch, names, pairs="none": PaddedLayout(_of(own, batch, names), pairs)
        known.real_tokens = lambda batch, embeddings, _: _tokens(own, batch, embeddings)
        known.real_momenta = lambda batch, names, _: torch.cat(
            [own.momenta(batch, name).flatten(0, 1) for name in names]
        )
    elif own.padding != "configured":
        raise ModelError(f"model {own.name} is one whose padded form is not known: it cannot be exported to ONNX")
    return own


def _of(model: Tagger, batch: Batch, names: Iterable[str]) -> list[GroupBatch]:
    return [model.group_of(batch, name) for name in names]


def _tokens(model: Tagger, batch: Batch, embeddings: nn.ModuleDict) -> Tensor:
    """Tokens [sum of B*N,E] of all slots, group behind group."""
    return torch.cat([embed(model.features(batch, name).flatten(0, 1)) for name, embed in embeddings.items()])


def _part_logits(model: ParticleTransformer_JetClass, batch: Batch) -> Tensor:
    """Logits [B,C] of the published Particle Transformer."""
    group = model.group_of(batch, "cpf")
    features = model.standardise(model.features(batch, "cpf"), group.mask)
    layout: Any = PaddedLayout([group], "all")
    return model.network.logits(features, model.momenta(batch, "cpf"), layout)


def _particle_net(model: ParticleNetTagger, batch: Batch) -> Tensor | Outputs:
    """What ParticleNet gives; slots without a candidate are nobody's neighbour and in no mean."""
    layout = PaddedLayout(_of(model, batch, model.embeddings), "none")
    mask = ~layout.hidden
    embedded = layout.rows(_tokens(model, batch, model.embeddings))
    (x,) = layout.split(batch_norm(model.norm_in, embedded))
    (points,) = layout.split(embedded) if model.function_version > 1 else (x,)
    layers = []
    for convolution in model.convolutions:
        x = points = _edge_convolution(cast("EdgeConvolution", convolution), x, points, mask)
        layers.append(x)
    fused = batch_norm(model.norm_fusion, model.fusion(torch.cat(layers, 2)).flatten(0, 1)).relu()
    fused = fused.reshape(layout.n_jets, layout.length, -1) * mask[..., None]
    mean = fused.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return model.outputs(model.head(model.dense(mean)))


def _edge_convolution(own: EdgeConvolution, x: Tensor, points: Tensor, mask: Tensor) -> Tensor:
    """[B,L,before] -> [B,L,after]: means over the real ones of the k slots that are nearest among `points` [B,L,F]."""
    neighbour, is_real = _neighbours(points, mask, own.k)
    first, difference = own.linears[0].get_parameter("weight").chunk(2, dim=1)
    centres, others = F.linear(x, first - difference), F.linear(x, difference)
    width = others.shape[2]
    index = neighbour.flatten(1)[..., None].expand(-1, -1, width)
    values = centres[:, :, None] + others.gather(1, index).reshape(*neighbour.shape, width)
    convolved = own._convolved(values.flatten(0, 2)).reshape(*neighbour.shape, -1)
    weight = is_real[..., None].to(convolved.dtype)
    mean = (convolved * weight).sum(2) / weight.sum(2).clamp(min=1)
    shortcut = own.shortcut(x)
    if isinstance(own.shortcut, nn.Linear):
        shortcut = batch_norm(own.norm_shortcut, shortcut.flatten(0, 1)).reshape(mean.shape)
    joined: Tensor = (shortcut + mean).relu()
    return joined


def _neighbours(x: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest slots [B,L,k] of each slot of [B,L,F], and which of them are real candidates other than itself."""
    length = x.shape[1]
    distance = (x[:, :, None] - x[:, None]).square().sum(3)
    distance = distance.masked_fill(~mask[:, None] | _diagonal(length, x.device), float("inf"))
    # there may be fewer slots than k
    distance = torch.cat((distance, torch.full_like(distance[..., :1], float("inf")).expand(-1, -1, k)), 2)
    nearest = distance.topk(k, dim=2, largest=False)
    return nearest.indices.clamp(max=length - 1), nearest.values < float("inf")
