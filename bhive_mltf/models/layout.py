"""How the jets of a batch lie in memory while a network works on them: rows of groups, and pairs of candidates.

Jets are sorted by their number of candidates and cut into a few groups, each padded to its longest jet. What works on
candidates one by one sees the rows of all groups at once, attention goes group by group, and pairs are those of real
candidates. The sizes of all tensors follow from the numbers of candidates, which the host knows: no operator makes it
wait for the device. Gradients of gathered values are gathered too: sums by index are slow, and on a GPU not
deterministic.

Axes: B jets, K kinds (groups of the config), N candidates as loaded, M real candidates, S jets of a group, L slots of
each, R rows (slots of all groups), P pairs, H heads, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Counts = NDArray[np.int64]
Pairs = Literal["none", "others", "all"]
"""No pairs; pairs of two candidates; those and each candidate with itself."""

MULTIPLE = 8
"""Lengths of groups are multiples of it: CUDA's attention kernels want rows of the bias aligned to 16 bytes."""
GROUPS = 8
JETS_PER_GROUP = 128
"""On a GPU small batches have fewer groups, since each costs launches of kernels."""
_ROW_WORK = 128
"""Work on a row besides attention, in units of that on one key; for the choice of groups."""


@dataclass(frozen=True)
class JetGroup:
    """Jets padded to one length.

    jets, length : S and L.
    hidden : bool [S,L], slots without a candidate.
    spread : int32 [S*L*L], the pair of each place; P where two slots are no pair, P + 1 where the key is hidden.
    lower, upper : int32 [P of the group], places (i, j) and (j, i) of each pair. All three are empty without pairs.
    """

    jets: int
    length: int
    hidden: Tensor
    spread: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def rows(self) -> int:
        """S * L."""
        return self.jets * self.length


@dataclass(frozen=True)
class Layout:
    """Where the candidates of a batch are. All indices are int32 and on the device of the batch.

    n_jets : B; a batch without jets is laid out as one jet without candidates, so that gradients exist.
    groups : of jets, by rising length.
    order, place : [B], the jet at each place, and the place of each jet.
    counts : int64 [B], on the host, candidates of the jet at each place; n : the same on the device.
    row : [B], first row of the jet at each place.
    real : for each kind, places of its real candidates in the flattened [B*N].
    jet : [M], the jet of each real candidate, kind behind kind.
    slot : [M], the row of each real candidate.
    source : [R], the value of each row, any where there is no candidate.
    packed : values are those of real candidates [M]; else, of one kind, of all as loaded [B*N].
    first, second : [P], rows of the candidates i and j of each pair, i >= j in the jet.
    """

    n_jets: int
    groups: tuple[JetGroup, ...]
    order: Tensor
    place: Tensor
    counts: Counts
    n: Tensor
    row: Tensor
    real: tuple[Tensor, ...]
    jet: Tensor
    slot: Tensor
    source: Tensor
    packed: bool
    first: Tensor
    second: Tensor

    def rows(self, values: Tensor) -> Tensor:
        """Values [M or B*N,E] of candidates as rows [R,E]."""
        if len(values) == 0:
            # nobody looks at them, but what they were made of has a gradient
            return values.sum(0, keepdim=True).expand(len(self.source), -1)
        if not self.packed:
            return values.index_select(0, self.source)
        rows: Tensor = _Gather.apply(values, self.source, self.slot)  # type: ignore[no-untyped-call]
        return rows

    def jets(self, values: Tensor) -> Tensor:
        """Values [max(B,1),E] of jets in the order of the groups as [B,E] in that of the batch."""
        jets: Tensor = _Gather.apply(values, self.place, self.order)  # type: ignore[no-untyped-call]
        return jets[: self.n_jets]

    def split(self, rows: Tensor) -> list[Tensor]:
        """Rows [R,E] of all groups as [S,L,E] of each."""
        parts = torch.split(rows, [group.rows for group in self.groups])
        return [part.view(g.jets, g.length, -1) for part, g in zip(parts, self.groups, strict=True)]

    def pair_biases(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values [H,P] of pairs as a symmetric attention bias of each group [H,S,L,L].

        Zero where two candidates are no pair, -inf where the key is hidden.
        """
        biases: tuple[Tensor, ...] = _Spread.apply(values, self.groups)  # type: ignore[no-untyped-call]
        return biases

    def key_biases(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Attention bias of each group [1,S,1,L]: -inf where the key is hidden."""
        return tuple(hiding(g.hidden & _not_first(g.hidden), dtype)[None, :, None] for g in self.groups)


def hiding(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention bias like `hidden`: 0, or -inf where it is True."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))


def _not_first(hidden: Tensor) -> Tensor:
    """[L]; the first slot of a jet without candidates is seen, since a softmax over nothing is NaN."""
    return torch.arange(hidden.shape[1], device=hidden.device) > 0


def group_shapes(lengths: Counts, most: int) -> list[tuple[int, int]]:
    """(jets, length) of each group of ascending `lengths` [B]: at most so many, neighbours joined where it costs least.

    The cost of longer rows is that of their attention and of the work on each row.
    """
    found, jets = np.unique(lengths, return_counts=True)
    groups = [[int(n), int(length)] for n, length in zip(jets, found, strict=True)]
    while len(groups) > most:
        cost = [
            n * (after * (after + _ROW_WORK) - length * (length + _ROW_WORK))
            for (n, length), (_, after) in pairwise(groups)
        ]
        least = cost.index(min(cost))
        joined = groups.pop(least)
        groups[least][0] += joined[0]
    return [(n, length) for n, length in groups]


def lay_out(
    counts: Counts, lengths: Sequence[int], device: torch.device, pairs: Pairs = "none", *, packed: bool = True
) -> Layout:
    """The layout of a batch, with one message to the device.

    Parameters
    ----------
    counts : int64 [K,B], on the host: real candidates of each kind, which come first among its N.
    lengths : N of each kind.
    packed : see `Layout`.
    """
    n_jets = counts.shape[1]
    counts = counts if n_jets else np.zeros((len(counts), 1), np.int64)
    total = counts.sum(0)
    order = np.argsort(total, kind="stable")
    n = total[order]
    padded = np.maximum(-(-n // MULTIPLE), 1) * MULTIPLE
    shapes = group_shapes(padded, GROUPS if device.type == "cpu" else _groups_on_gpu(len(n)))
    length = np.repeat([long for _, long in shapes], [jets for jets, _ in shapes])
    n_pairs = n * (n + (1 if pairs == "all" else -1)) // 2 * (pairs != "none")
    row, pair = np.cumsum(length) - length, np.cumsum(n_pairs) - n_pairs
    place = np.argsort(order, kind="stable")
    # each kind's candidates stand behind those of the kinds before it in the row of their jet
    slots = row[place] + np.cumsum(counts, axis=0) - counts
    starts = np.cumsum(counts, axis=1) - counts
    table = _to_device(np.stack([order, place, n, row, n_pairs, pair, *counts, *starts, *slots]), device)

    n_kinds, n_of_kind = len(counts), counts.sum(1).tolist()
    d_order, d_place, d_n, d_row, d_n_pairs, d_pair = table[:6].unbind()
    d_counts, d_starts, d_slots = table[6:].view(3, n_kinds, -1)
    each = [entries(d_counts[k], d_starts[k], n_of_kind[k]) for k in range(n_kinds)]
    real = tuple(jet * n_slots + i for (jet, i), n_slots in zip(each, lengths, strict=True))
    slot = torch.cat([d_slots[k].index_select(0, jet) + i for k, (jet, i) in enumerate(each)])
    values = torch.arange(len(slot), dtype=torch.int32, device=device) if packed else real[0]
    source = torch.zeros(int(length.sum()), dtype=torch.int32, device=device).index_copy_(0, slot.long(), values)

    jet, local = entries(d_n_pairs, d_pair, int(n_pairs.sum()))
    i, j = _pair_table(int(n[-1]), pairs, device).index_select(1, local)
    groups, start = [], 0
    for size, long in shapes:
        here = slice(start, start + size)
        of_group = slice(int(pair[start]), int(pair[start] + n_pairs[here].sum()))
        corner = (jet[of_group] - start) * long**2
        lower, upper = (corner + a[of_group] * long + b[of_group] for a, b in ((i, j), (j, i)))
        hidden = torch.arange(long, dtype=torch.int32, device=device) >= d_n[here, None]
        spread = _spread_index(hidden, d_pair[here], int(n_pairs.sum()), pairs)
        groups.append(JetGroup(size, long, hidden, spread, lower, upper))
        start += size
    at = d_row.index_select(0, jet)
    of_jets = torch.cat([jet for jet, _ in each])
    return Layout(
        n_jets, tuple(groups), d_order, d_place, n, d_n, d_row, real, of_jets, slot, source, packed, at + i, at + j
    )


def _groups_on_gpu(n_jets: int) -> int:
    return min(max(n_jets // JETS_PER_GROUP, 1), GROUPS)


def _to_device(table: Counts, device: torch.device) -> Tensor:
    """int32, without waiting for the device."""
    values = torch.from_numpy(table).int()
    if device.type == "cuda" and torch.cuda.is_available():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def entries(many: Tensor, start: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """`many` [B] entries of each jet: its number, and that of the entry inside it; both [total]."""
    jet = torch.repeat_interleave(many, output_size=total).int()
    return jet, torch.arange(total, dtype=torch.int32, device=many.device) - start.index_select(0, jet)


def _pair_table(longest: int, pairs: Pairs, device: torch.device) -> Tensor:
    """(i, j) of the pairs of a jet, j <= i, in the order of i, then j: int32 [2,P]."""
    offset = 0 if pairs == "all" else -1
    return torch.tril_indices(longest, longest, offset, dtype=torch.int32, device=device)


def _spread_index(hidden: Tensor, pair: Tensor, total: int, pairs: Pairs) -> Tensor:
    """`JetGroup.spread` of jets with these hidden slots [S,L], whose pairs start at `pair` [S]."""
    if pairs == "none":
        return pair[:0]
    slot = torch.arange(hidden.shape[1], dtype=torch.int32, device=hidden.device)
    high, low = torch.maximum(slot[:, None], slot), torch.minimum(slot[:, None], slot)
    before = high * (high + (1 if pairs == "all" else -1))
    number = pair[:, None, None] + torch.div(before, 2, rounding_mode="floor") + low
    none = total + (hidden & _not_first(hidden)).int()
    is_pair = ~hidden[:, :, None] & ~hidden[:, None]
    if pairs == "others":
        is_pair = is_pair & (high != low)
    return torch.where(is_pair, number, none[:, None]).flatten()


class _Gather(torch.autograd.Function):
    """Rows by an index whose inverse is known; rows that nobody gathers, or twice, have no gradient there."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(inverse)
        return values.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, groups: Sequence[JetGroup]) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.groups, ctx.n_heads = groups, len(values)
        table = F.pad(F.pad(values, (0, 1)), (0, 1), value=float("-inf"))
        return tuple(table.index_select(1, g.spread).view(len(values), g.jets, g.length, g.length) for g in groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        found = []
        for group, grad in zip(ctx.groups, grads, strict=True):
            flat = grad.reshape(ctx.n_heads, -1)
            # a candidate with itself has one place
            other = flat.index_select(1, group.upper).mul_((group.upper != group.lower).to(flat.dtype))
            found.append(other.add_(flat.index_select(1, group.lower)))
        return torch.cat(found, 1), None
