"""The Particle Transformer on packed jets: the same function as `PartNetwork` on padded ones, with less to compute.

Real particles only, in groups of jets of like multiplicity; norms folded into linear maps; each real pair once. It is
how the network runs on a CPU. Axes as in `part_network`, and R rows as in `packing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bhive_mltf.models.cpu_kernels.fused import Affine, add_normed, after_norm, feed_forward, norm_linear, scaled
from bhive_mltf.models.cpu_kernels.fused_attention import group_attention, spread_to_groups
from bhive_mltf.models.cpu_kernels.fused_pairs import stage
from bhive_mltf.models.cpu_kernels.masks import Dropout
from bhive_mltf.models.cpu_kernels.moments import Moments, across_ranks, covariance, normal, together, variances
from bhive_mltf.models.cpu_kernels.packing import PackedPairs, Packing
from bhive_mltf.models.kinematics import log_features, pair_kinematics
from bhive_mltf.models.layers import batch_norm

if TYPE_CHECKING:
    from bhive_mltf.models.part.network import ClassBlock, FeatureEmbedding, PairEmbedding, ParticleBlock, PartNetwork


def can_pack(network: nn.Module, features: Tensor) -> bool:
    """Whether `packed_logits` stands for the network here: on a CPU, outside a compiler, norms as torch's own."""
    if features.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return False
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return all(isinstance(norm, nn.BatchNorm1d) for norm in norms)


def packed_logits(network: PartNetwork, features: Tensor, momenta: Tensor, mask: Tensor) -> Tensor:
    """Logits [B,C] as `PartNetwork.forward` gives them: the same up to rounding, in float32 under autocast too."""
    with torch.autocast("cpu", enabled=False):
        n_jets, slots = len(mask), features.flatten(0, 1)
        if mask.numel() == 0:
            # one empty jet at least: the gradients of nothing are zeros, and exist
            n_rows = max(n_jets, 1)
            momenta, mask = momenta.new_zeros(n_rows, 1, 4), mask.new_zeros(n_rows, 1)
        packing = Packing.of(mask)
        pairs = PackedPairs.of(packing, with_self=True)
        with torch.no_grad():
            kinematics = pair_kinematics(momenta.flatten(0, 1)[packing.source], pairs.first, pairs.second)
            pair_features = log_features(kinematics).to(slots.dtype)
        moments = _input_moments(network, slots, pair_features)
        rows = _normed_rows(network.embedding.norm, slots, moments[0], packing.source)
        tokens = _embed(network.embedding, rows, [group.rows for group in packing.groups])
        biases = _pair_biases(network.pair_embedding, pair_features, moments[1], pairs, packing)
        for block in network.blocks:
            tokens = _particle_block(block, tokens, biases, packing)  # type: ignore[arg-type]
        return _classify(network, tokens, packing)[:n_jets]


def _input_moments(network: PartNetwork, slots: Tensor, pair_features: Tensor) -> list[Moments]:
    """Of the slots [B*N,F], padded ones included, and of the features of pairs, in one message to other ranks.

    In evaluation nobody looks at them.
    """
    if network.training:
        return together((variances(slots), covariance(pair_features)), network.embedding.norm)
    width = pair_features.shape[1]
    return [Moments(0, slots, slots), Moments(0, slots.new_zeros(width), slots.new_zeros(width, width))]


def _normed_rows(norm: nn.BatchNorm1d, slots: Tensor, moments: Moments, source: Tensor) -> Tensor:
    """Rows [R,F] of the normed slots [B*N,F]; zeros if there are no slots."""
    if slots.requires_grad:
        normed = batch_norm(norm, slots)
        return normed.index_select(0, source) if len(slots) else normed.new_zeros(len(source), normed.shape[1])
    mean, variance = normal(norm, moments)
    factor = norm.weight * torch.rsqrt(variance.to(slots.dtype) + norm.eps)
    rows = slots.index_select(0, source) if len(slots) else slots.new_zeros(len(source), slots.shape[1])
    return torch.addcmul(norm.bias, rows - mean.to(slots.dtype), factor)


def _affine(linear: nn.Linear) -> Affine:
    return Affine(linear.weight, linear.bias)


def _embed(embedding: FeatureEmbedding, rows: Tensor, pieces: list[slice]) -> Tensor:
    layers = list(embedding.layers)
    for norm, linear in zip(layers[::3], layers[1::3], strict=True):
        assert isinstance(norm, nn.LayerNorm)
        assert isinstance(linear, nn.Linear)
        rows = norm_linear(rows, after_norm(_affine(linear), norm), norm.eps, pieces, gelu=True)
    return rows


def _pair_biases(
    embedding: PairEmbedding, features: Tensor, moments: Moments, pairs: PackedPairs, packing: Packing
) -> tuple[Tensor, ...]:
    """Attention bias of each group [H*S,L,L]."""
    norms, linears = list(embedding.norms), list(embedding.linears)
    values, factor, offset = _first_map(features, moments, norms[0], linears[0], norms[1])  # type: ignore[arg-type]
    for linear, norm in zip(linears[1:], norms[2:], strict=True):
        values, moments = stage(values, factor, offset, linear.weight)  # type: ignore[arg-type]
        factor, offset = _factor_and_offset(norm, linear.bias, moments)  # type: ignore[arg-type]
    last = torch.addcmul(offset, values, factor) if factor.dim() == 1 else F.linear(values, factor, offset)
    if embedding.final_activation:
        last = F.gelu(last)
    return spread_to_groups(last.t().contiguous(), pairs.groups, packing.groups)


def _first_map(
    features: Tensor, found: Moments, norm: nn.BatchNorm1d, linear: nn.Linear, after: nn.BatchNorm1d
) -> tuple[Tensor, Tensor, Tensor]:
    """Two batch norms and the linear map between them, as one linear map of centred features: x, weight, offset."""
    mean, variance = normal(norm, Moments(found.rows, found.mean, found.variance.diagonal()))
    variance = variance.to(features.dtype)
    weight = linear.weight * (norm.weight * torch.rsqrt(variance + norm.eps))
    centre = torch.addmv(linear.bias, linear.weight, norm.bias)
    spread = ((weight @ found.variance.to(features.dtype)) * weight).sum(1)
    mean_after, variance_after = normal(after, Moments(found.rows, centre, spread))
    factor = after.weight * torch.rsqrt(variance_after + after.eps)
    return features - mean.to(features.dtype), weight * factor[:, None], after.bias + (centre - mean_after) * factor


def _factor_and_offset(norm: nn.BatchNorm1d, bias: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    """Of a batch norm after a linear map whose offset `bias` is not in the moments."""
    moments = across_ranks(moments, norm)
    mean, variance = normal(norm, moments._replace(mean=moments.mean + bias))
    factor = norm.weight * torch.rsqrt(variance + norm.eps)
    # the offset of the map cancels and stays in the graph: its gradient is zero, not absent
    return factor, norm.bias + (bias - mean) * factor


def _particle_block(block: ParticleBlock, x: Tensor, biases: tuple[Tensor, ...], packing: Packing) -> Tensor:
    pieces = [group.rows for group in packing.groups]
    attention, heads = block.attention, block.attention.num_heads
    width = x.shape[1]
    dropped = Dropout(attention.dropout if block.training else 0.0, x.dtype)
    factors = x.new_tensor([(width // heads) ** -0.5, 1.0, 1 / dropped.keep]).repeat_interleave(width)
    project = scaled(after_norm(_affine(attention.project_in), block.norm_before_attention), factors)
    projected = norm_linear(x, project, block.norm_before_attention.eps, pieces)
    attended = group_attention(projected, biases, heads, dropped, packing.groups)

    dropout = Dropout(block.dropout.p if block.training else 0.0, x.dtype)
    out = scaled(_affine(attention.project_out), block.head_scale.repeat_interleave(width // heads))
    x = add_normed(x, attended, out, block.norm_after_attention, dropout, pieces)
    expand = after_norm(_affine(block.expand), block.norm_before_expansion)
    contract = after_norm(_affine(block.contract), block.norm_expanded)
    eps = (block.norm_before_expansion.eps, block.norm_expanded.eps)
    return feed_forward(x, expand, contract, block.residual_scale, eps, dropout, pieces)


def _classify(network: PartNetwork, tokens: Tensor, packing: Packing) -> Tensor:
    rows, hidden = packing.slots()
    # the memory of all class blocks has one norm, but for its weight
    eps: float = network.class_blocks[0].norm_before_attention.eps  # type: ignore[union-attr, assignment]
    memory = F.layer_norm(tokens, tokens.shape[1:], eps=eps).index_select(0, rows.flatten()).view(*rows.shape, -1)
    bias = tokens.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
    bias = F.pad(bias, (1, 0))[:, None]
    token = network.class_token.expand(len(rows), -1, -1)
    for block in network.class_blocks:
        token = _class_block(block, token, memory, bias)  # type: ignore[arg-type]
    logits: Tensor = network.head(network.norm(token.squeeze(1)))
    return logits


def _class_block(block: ClassBlock, token: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
    """Class token [B,1,E] from the class token, normed tokens [B,L,E] and bias [B,1,1+L].

    With one query per jet, keys and values need not be made: the query of each head is taken to the space of the
    tokens, and the weighted mean of the tokens to that of the values. The offset of the keys moves all scores alike.
    """
    attention, heads = block.attention, block.attention.num_heads
    n_jets, _, width = token.shape
    weight, offset = attention.project_in.weight, attention.project_in.bias
    folded = after_norm(Affine(weight[width:], offset[width:]), block.norm_before_attention)
    keys, values = folded.weight.view(2, heads, width // heads, width)
    query = (
        F.linear(token[:, 0], weight[:width], offset[:width]).view(n_jets, heads, width // heads)
        * (width // heads) ** -0.5
    )
    asked = (query.transpose(0, 1) @ keys).transpose(0, 1)
    own = F.layer_norm(token, token.shape[2:], eps=block.norm_before_attention.eps)
    seen = torch.cat((own, memory), 1)
    weights = (asked @ seen.transpose(1, 2) + bias).softmax(-1)
    mean = (weights @ seen).transpose(0, 1)
    attended = (mean @ values.transpose(1, 2)).transpose(0, 1).reshape(n_jets, 1, width) + folded.offset[width:]
    return block.add_feed_forward(block.add_attended(token, attention.project_out(attended)))
