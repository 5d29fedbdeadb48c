"""Jets of a batch in groups of like multiplicity, so that next to nothing is computed for padding.

Axes: B jets, N candidates, R rows (slots of candidates in the groups, one after the other), G groups, S jets of a
group, L slots of each of its jets, P pairs, H heads. What a slot without a candidate computes is never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

ROWS_PER_GROUP = 384
"""Rows that one core works on at a time: their activations stay in its cache."""


@dataclass(frozen=True)
class Group:
    """Jets of like multiplicity.

    rows : range of rows, S x L.
    real : bool [S,L], slots with a candidate.
    hidden : bool [S,L], slots that nothing may look at: the others, but for the first of a jet without candidates,
        since a softmax over nothing is NaN.
    """

    rows: slice
    n_jets: int
    length: int
    real: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class Packing:
    """A batch in groups.

    groups : by increasing multiplicity.
    order : int64 [B], the jet of the batch at each place of the groups.
    source : int64 [R], the row of the flattened [B*N] in each slot; any real one where there is none.
    """

    groups: tuple[Group, ...]
    order: Tensor
    source: Tensor

    @classmethod
    def of(cls, mask: Tensor, rows_per_group: int = ROWS_PER_GROUP) -> Packing:
        """Groups for a mask [B,N], B and N at least 1; candidates may stand anywhere."""
        counts, order = mask.sum(1).sort(stable=True)
        real = mask.flatten().nonzero().squeeze(1)
        if len(real) == 0:
            real = real.new_zeros(1)
        starts = (mask.sum(1).cumsum(0) - mask.sum(1))[order]
        groups, sources, row = [], [], 0
        for first, last, length in _cuts(counts.tolist(), rows_per_group):
            slot = torch.arange(length, device=mask.device)
            own = counts[first:last, None]
            sources.append((starts[first:last, None] + slot.minimum(own - 1)).clamp(0, len(real) - 1).flatten())
            stop = row + (last - first) * length
            groups.append(Group(slice(row, stop), last - first, length, slot < own, slot >= own.clamp(min=1)))
            row = stop
        return cls(tuple(groups), order, real[torch.cat(sources)])

    def slots(self) -> tuple[Tensor, Tensor]:
        """Rows of each jet in the order of the batch, int64 [B,L], and which of them hold no candidate, bool [B,L]."""
        longest = self.groups[-1].length
        slot = torch.arange(longest, device=self.order.device)
        starts, hidden = [], []
        for group in self.groups:
            starts.append(torch.arange(group.rows.start, group.rows.stop, group.length, device=slot.device))
            hidden.append(nn.functional.pad(~group.real, (0, longest - group.length), value=True))
        back = self.order.argsort()
        unseen = torch.cat(hidden)[back]
        return (torch.cat(starts)[back, None] + slot).masked_fill(unseen, 0), unseen


def _cuts(counts: list[int], rows_per_group: int) -> list[tuple[int, int, int]]:
    """(first jet, end, length) of each group for sorted multiplicities: as many jets as fit."""
    cuts, first = [], 0
    for place in range(1, len(counts) + 1):
        if place == len(counts) or (place + 1 - first) * max(counts[place], 1) > rows_per_group:
            cuts.append((first, place, max(counts[place - 1], 1)))
            first = place
    return cuts


@dataclass(frozen=True)
class GroupPairs:
    """Unordered pairs of candidates of each jet of a group, those of the batch in one list.

    pairs : range of the group's pairs in that list.
    lower, upper : int64 [P of the group], places (i, j) and (j, i) in the flattened [S*L*L]; i >= j.
    spread : int64 [S*L*L], the pair of each place; P where a candidate or self-pair has none, P + 1 where the
        key is hidden.
    """

    pairs: slice
    lower: Tensor
    upper: Tensor
    spread: Tensor


@dataclass(frozen=True)
class PackedPairs:
    """All pairs of a batch; `first`, `second`: rows of its candidates i and j, int64 [P]."""

    groups: tuple[GroupPairs, ...]
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, packing: Packing, with_self: bool) -> PackedPairs:
        """Pairs of a packed batch; `with_self`: each candidate with itself too."""
        found = [_places(group, with_self) for group in packing.groups]
        total, start, groups = sum(len(first) for first, *_ in found), 0, []
        for group, (first, _, lower, upper) in zip(packing.groups, found, strict=True):
            stop = start + len(first)
            spread = torch.where(group.hidden, total + 1, total)[:, None].expand(-1, group.length, -1).flatten()
            numbers = torch.arange(start, stop, device=lower.device)
            spread[lower] = numbers
            spread[upper] = numbers
            groups.append(GroupPairs(slice(start, stop), lower, upper, spread))
            start = stop
        return cls(tuple(groups), torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found]))


def _places(group: Group, with_self: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of i and j, places (i, j) and (j, i) of the group's pairs."""
    length = group.length
    i, j = torch.tril_indices(length, length, 0 if with_self else -1, device=group.hidden.device)
    jet, pair = group.real[:, i].nonzero(as_tuple=True)
    first, second = jet * length + i[pair], jet * length + j[pair]
    return group.rows.start + first, group.rows.start + second, first * length + j[pair], second * length + i[pair]
