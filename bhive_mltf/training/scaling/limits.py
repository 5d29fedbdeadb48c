"""The two limits of a device's speed: what it moves and what it multiplies, beside what a step asks for.

Bytes are those that the operators of a step read and write, each on its own, as they lie in memory; what a compiler
fuses is moved less often, so that a compiled step may seem to be above the limit. Operations are those of matrix
products and attention, as torch counts them; recurrent layers are not among them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bhive_mltf import compat

# operators that move nothing
_VIEWS = {
    *("view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "split", "unbind"),
    *("split_with_sizes", "as_strided", "unfold", "_unsafe_view", "detach", "alias", "_reshape_alias", "lift_fresh"),
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "set_", "record_stream"),
}
_COPIED = {"cuda": 2**30, "cpu": 2**26}  # bytes, beyond any cache
_SIDE = {"cuda": 8192, "cpu": 1024}
_REPEAT = 5


@dataclass(frozen=True)
class Cost:
    """What a step asks for, forward, backward and all, per jet; kernels : operators of the step that move something."""

    bytes: float
    flops: float
    kernels: int


@dataclass(frozen=True)
class Ceilings:
    """What a device does, measured: bytes moved and operations of a product, per second."""

    bytes: float
    flops: float


class Traced(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The cost of what is done inside `over`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._products = FlopCounterMode(display=False)
        self._bytes = self._n_jets = 0
        self._calls: Counter[str] = Counter()

    @contextmanager
    def over(self, n_jets: int) -> Iterator[None]:
        """For one step over so many jets, without what was compiled."""
        self._n_jets = n_jets
        with compat.uncompiled(), self, self._products:
            yield

    def calls(self, operator: str) -> int:
        """How often an operator was called."""
        return self._calls[operator]

    def cost(self) -> Cost:
        """The cost per jet."""
        n_jets = max(self._n_jets, 1)
        return Cost(self._bytes / n_jets, self._products.get_total_flops() / n_jets, self._calls.total())

    def __torch_dispatch__(
        self,
        function: Any,  # noqa: ANN401 - an operator, and what it takes and gives
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        out = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1]
        if name not in _VIEWS:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self._bytes += sum(map(_size, tensors))
            self._calls[name] += 1
        return out


def ceilings(device: torch.device, dtype: torch.dtype = torch.float32) -> Ceilings:
    """Of a copy, which reads and writes, and of a square product of this type."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    values = torch.empty(_COPIED[kind] // 4, device=device)
    target = torch.empty_like(values)
    factor = torch.randn(_SIDE[kind], _SIDE[kind], device=device).to(dtype)
    copied = _seconds(lambda: target.copy_(values), device)
    multiplied = _seconds(lambda: factor @ factor, device)
    return Ceilings(2 * _COPIED[kind] / copied, 2 * _SIDE[kind] ** 3 / multiplied)


def _size(values: Tensor) -> int:
    """Bytes in memory: what is only repeated counts once."""
    places = prod(n for n, step in zip(values.shape, values.stride(), strict=True) if step or not n)
    return places * values.element_size()


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """The shortest of some calls."""
    found = []
    for _ in range(1 + _REPEAT):
        _wait(device)
        started = time.perf_counter()
        function()
        _wait(device)
        found.append(time.perf_counter() - started)
    return min(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
