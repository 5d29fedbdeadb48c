"""Dropout on a CPU at the cost of the random bits alone.

torch's Bernoulli numbers take longer than a small matrix product there. Here 32 or 64 random bits are read as a
floating point number, and the element is kept where that number is above a bound: one vectorised pass, and the rate is
exact to 2^-32. Not-a-number counts as above the bound, which the bound takes into account.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BITS = {torch.float32: (32, 23, np.float32, np.uint32), torch.float64: (64, 52, np.float64, np.uint64)}


class Dropout:
    """Random numbers of one dropout rate, seeded by torch's generator.

    A kept element keeps its value: the factor `1 / keep` is left to the caller, who has a weight to put it in.
    """

    def __init__(self, rate: float, dtype: torch.dtype) -> None:
        self.rate, self.dtype = rate, dtype
        self.keep = 1.0 - rate
        if rate > 0:
            self.bound = _bound(rate, dtype)
            self._random = np.random.SFC64(int(torch.randint(2**62, ()).item()))

    def key(self) -> tuple[int, int]:
        """A key of 64 bits and a bound, for numbers of 32 bits that are hashed from it: kept is what is not below."""
        return (self._random.random_raw(), min(round(self.rate * 2**32), 2**32 - 1)) if self.rate > 0 else (0, 0)

    def draw(self, like: Tensor) -> Tensor | None:
        """Random numbers for `keep_where`, of the shape of `like`; None where everything is kept."""
        if self.rate <= 0:
            return None
        n_words = -(-like.numel() * _BITS[self.dtype][0] // 64)
        words = self._random.random_raw(n_words)
        numbers: Tensor = torch.from_numpy(words.view(_BITS[self.dtype][2])[: like.numel()]).view(like.shape)
        return numbers

    def keep_where(self, values: Tensor, drawn: Tensor | None) -> Tensor:
        """`values`, zero where dropped; in place."""
        if drawn is None:
            return values
        torch.ops.aten.threshold_backward.grad_input(values, drawn, self.bound, grad_input=values)
        return values

    def kept(self, values: Tensor, drawn: Tensor | None) -> Tensor:
        """As `keep_where`, out of place."""
        return values if drawn is None else torch.ops.aten.threshold_backward(values, drawn, self.bound)


def _bound(rate: float, dtype: torch.dtype) -> float:
    """The number that a share `rate` of all bit patterns, read as `dtype`, is not above; not-a-number is above.

    Not above a negative bound -b are the negative numbers from b to infinity; not above a positive one are all
    negative numbers and the positive ones up to it.
    """
    bits, mantissa, floating, integer = _BITS[dtype]
    infinity = 2 ** (bits - 1 - mantissa) - 1 << mantissa
    dropped = round(rate * 2**bits)
    sign, pattern = (-1, infinity + 1 - dropped) if dropped <= infinity else (1, dropped - infinity - 2)
    return sign * float(np.array(min(max(pattern, 0), infinity - 1), dtype=integer).view(floating))
