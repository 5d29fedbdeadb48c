"""From groups of candidates to one padded sequence, and what its attention may see.

Axes: B jets, N candidates of all groups, F columns, E width, H heads, M real candidates of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bhive_mltf.models.layers import key_bias, visible_keys

if TYPE_CHECKING:
    from bhive_mltf.interface import Batch
    from bhive_mltf.models.base import Tagger


def real_rows(mask: Tensor) -> Tensor:
    """Places [M] of the real candidates in the flattened [B*N]."""
    return mask.flatten().nonzero().squeeze(1)


def spread_rows(rows: Tensor, where: Tensor, mask: Tensor) -> Tensor:
    """Rows [M,E] of the real candidates as [B,N,E], zero where padded."""
    flat = rows.new_zeros(mask.numel(), rows.shape[1]).index_copy(0, where, rows)
    return flat.view(*mask.shape, rows.shape[1])


def on_candidates(function: Callable[[Tensor], Tensor], features: Tensor, mask: Tensor) -> Tensor:
    """`function` of rows [M,F] -> [M,E] on the real candidates of [B,N,F] only; [B,N,E], zero where padded.

    What a batch norm inside sees does not depend on the padding.
    """
    where = real_rows(mask)
    return spread_rows(function(features.flatten(0, 1).index_select(0, where)), where, mask)


def embedded(tagger: Tagger, batch: Batch, embeddings: nn.ModuleDict) -> tuple[Tensor, Tensor]:
    """Tokens [B,N,E] and mask [B,N] of the groups that have an embedding, one after the other."""
    masks = [tagger.group_of(batch, name).mask for name in embeddings]
    tokens = [
        on_candidates(embedding, tagger.features(batch, name), mask)
        for (name, embedding), mask in zip(embeddings.items(), masks, strict=True)
    ]
    return torch.cat(tokens, dim=1), torch.cat(masks, dim=1)


def pair_bias(tagger: Tagger, batch: Batch, names: Iterable[str], mask: Tensor, pair_embedding: nn.Module) -> Tensor:
    """Attention bias [B,H,N,N] of the pairs of candidates of all groups, -inf for padded keys."""
    momenta = torch.cat([tagger.momenta(batch, name) for name in names], dim=1)
    bias: Tensor = pair_embedding(momenta, mask)
    return bias + key_bias(visible_keys(mask), bias.dtype)


def class_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Bias [B,1,1,1+N] of a class token that looks at itself and the real candidates."""
    return key_bias(torch.cat((mask.new_ones(len(mask), 1), mask), dim=1), dtype)
