"""What stands between the matrix products of a transformer on a CPU.

One pass over the rows where `rows_kernels.h` was built at installation and the processor has its instructions, else
torch's operations one after the other: the same but for rounding and the random numbers of dropout.

Axes: R rows, K width, S x L scores.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bhive_mltf.files import libraries
from bhive_mltf.models.cpu_kernels.masks import Dropout

aten = torch.ops.aten
LANES: Mapping[str, int] = {"avx512": 16, "avx2": 8}
"""Kinds of compiled functions, the widest first, and what the widths that they take are multiples of."""
SOURCES = tuple(Path(__file__).with_name(f"rows_{kind}.c") for kind in LANES)
MOST = 1024
"""The largest width that the compiled functions take."""


class Drop(ctypes.Structure):
    """Which elements dropout keeps, for the compiled functions: a hash of their number and the key is above a bound."""

    _fields_ = (("key", ctypes.c_uint64), ("bound", ctypes.c_uint32))


Drawn = Tensor | Drop | None
_A, _N = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = {
    "gelu_drop_norm": (_A, _N, _N, ctypes.c_float, Drop, _A, _A),
    "back_gelu_drop_norm": (_A, _A, _A, _N, _N, Drop, _A),
    "softmax_drop": (_A, _N, _N, Drop, _A),
    "back_softmax_drop": (_A, _A, _N, _N, Drop),
    "line_gelu": (_A, _A, _A, _N, _N, _A),
    "back_line_gelu": (_A, _A, _A, _A, _N, _N, _A, _A, _A),
    "add_moments": (_A, _A, _N, _N, _A, _A),
    "add_line": (_A, _A, _A, _A, _N, _N, _A),
    "to_heads": (_A, _N, _N, _N, _N, _A),
    "from_heads": (_A, _N, _N, _N, _N, _A),
}


class Kernels:
    """The compiled functions of one kind, by their names in `rows_kernels.h`."""

    def __init__(self, library: ctypes.CDLL, kind: str) -> None:
        self.kind, self.lanes = kind, LANES[kind]
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, f"{name}_{kind}")
            function.restype, function.argtypes = None, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - a function of the library
        raise AttributeError(f"there is no compiled function '{name}'")


def load(path: Path) -> tuple[Kernels, ...]:
    """What a library has for this processor, the widest first."""
    found = []
    for kind in LANES:
        library = libraries.load(path, f"usable_{kind}")
        if library is not None and getattr(library, f"usable_{kind}")():
            found.append(Kernels(library, kind))
    return tuple(found)


def installed() -> tuple[Kernels, ...]:
    """What was built at installation and is of use here."""
    path = libraries.built(Path(__file__))
    return () if path is None else load(path)


KERNELS = installed()


def _at(values: Tensor | None) -> int | None:
    if values is None:
        return None
    assert values.is_contiguous()
    return values.data_ptr()


def _kernels(x: Tensor, width: int = 0) -> Kernels | None:
    """The widest compiled functions for rows of this width, 0 for any; None: there are none."""
    if x.dtype != torch.float32 or width > MOST:
        return None
    return next((kernels for kernels in KERNELS if width % kernels.lanes == 0), None)


def normed(x: Tensor, eps: float, ones: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Norm [R,K] without weight, mean and 1/std [R,1]."""
    # with a weight of ones torch's kernel takes half the time of that without a weight
    found: tuple[Tensor, Tensor, Tensor] = aten.native_layer_norm(x, [x.shape[-1]], ones, zeros, eps)
    return found


def through_norm(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Gradient [R,K] of the input of a norm without weight."""
    found: Tensor = aten.native_layer_norm_backward(
        grad, x, [x.shape[-1]], mean, rstd, None, None, [True, False, False]
    )[0]
    return found


def gelu_drop_norm(
    x: Tensor, eps: float, dropout: Dropout, ones: Tensor, zeros: Tensor
) -> tuple[Tensor, Tensor, Drawn]:
    """Norm without weight of dropout of GELU of x [R,K], its 1/std [R,1], and what dropout drew."""
    compiled = _kernels(x, x.shape[1])
    if compiled is None:
        hidden = aten.gelu(x)
        drawn = dropout.draw(hidden)
        out, _, rstd = normed(dropout.keep_where(hidden, drawn), eps, ones, zeros)
        return out, rstd, drawn
    drop = Drop(*dropout.key())
    out, rstd = torch.empty_like(x), x.new_empty(len(x), 1)
    compiled.gelu_drop_norm(_at(x), *x.shape, eps, drop, _at(out), _at(rstd))
    return out, rstd, drop


def back_gelu_drop_norm(grad: Tensor, out: Tensor, x: Tensor, drawn: tuple[Dropout, Drawn], sums: Tensor) -> Tensor:
    """Gradient of x of `gelu_drop_norm`, from that of `out` times 1/std, in place; its sums over rows go to `sums`."""
    dropout, drop = drawn
    if isinstance(drop, Drop):
        compiled = _kernels(x, x.shape[1])
        assert compiled is not None
        compiled.back_gelu_drop_norm(_at(grad), _at(out), _at(x), *x.shape, drop, _at(sums))
        return grad
    unit = grad.new_ones(len(grad), 1)
    grad = dropout.keep_where(through_norm(grad, out, torch.zeros_like(unit), unit), drop)
    aten.gelu_backward.grad_input(grad, x, grad_input=grad)
    sums += grad.sum(0)
    return grad


def softmax_drop(scores: Tensor, dropout: Dropout) -> tuple[Tensor, Tensor, Drawn]:
    """Softmax of scores [S,L,L], in place, the same with dropout, and what dropout drew."""
    compiled = _kernels(scores)
    if compiled is None:
        weights = aten._softmax.out(scores, -1, False, out=scores)
        drawn = dropout.draw(weights)
        return weights, dropout.kept(weights, drawn), drawn
    drop, out = Drop(*dropout.key()), torch.empty_like(scores)
    compiled.softmax_drop(_at(scores), scores.numel() // scores.shape[-1], scores.shape[-1], drop, _at(out))
    return scores, out, drop


def back_softmax_drop(grad: Tensor, weights: Tensor, dropout: Dropout, drawn: Drawn) -> Tensor:
    """Gradient of the scores of `softmax_drop` from that of the dropped weights, in place where that is possible."""
    if isinstance(drawn, Drop):
        compiled = _kernels(grad)
        assert compiled is not None
        compiled.back_softmax_drop(_at(grad), _at(weights), grad.numel() // grad.shape[-1], grad.shape[-1], drawn)
        return grad
    found: Tensor = aten._softmax_backward_data(dropout.keep_where(grad, drawn), weights, -1, weights.dtype)
    return found


def line_gelu(x: Tensor, factor: Tensor | None, offset: Tensor | None, out: Tensor) -> None:
    """GELU of x [R,K] times factor plus offset, both [K], or of x alone; to `out`."""
    compiled = _kernels(x, x.shape[1])
    if compiled is None:
        aten.gelu.out(x if factor is None or offset is None else torch.addcmul(offset, x, factor), out=out)
    else:
        compiled.line_gelu(_at(x), _at(factor), _at(offset), *x.shape, _at(out))


def back_line_gelu(
    grad: Tensor, x: Tensor, line: tuple[Tensor, Tensor] | None, sums: tuple[Tensor, Tensor | None], to_x: Tensor | None
) -> None:
    """Gradient of `line_gelu` of the factor and offset `line`: in place to that of what GELU has seen.

    sums : to which the sums over rows of it are added, and of it times x. to_x : becomes it times the factor.
    """
    compiled = _kernels(x, x.shape[1])
    factor, offset = (None, None) if line is None else line
    if compiled is not None:
        compiled.back_line_gelu(_at(grad), _at(x), _at(factor), _at(offset), *x.shape, *map(_at, (*sums, to_x)))
        return
    seen = x if factor is None or offset is None else torch.addcmul(offset, x, factor)
    aten.gelu_backward.grad_input(grad, seen, grad_input=grad)
    sums[0].add_(grad.sum(0))
    if factor is not None and sums[1] is not None:
        sums[1].add_((grad * x).sum(0))
        if to_x is not None:
            torch.mul(grad, factor, out=to_x)


def add_moments(x: Tensor, origin: Tensor, total: Tensor, squares: Tensor) -> None:
    """Add the sums over rows of x [R,K] minus origin [K], and of the squares, to two float64 [K]."""
    compiled = _kernels(x, x.shape[1])
    if compiled is not None:
        compiled.add_moments(_at(x), _at(origin), *x.shape, _at(total), _at(squares))
        return
    shifted = x - origin
    total += shifted.sum(0)
    squares += shifted.square_().sum(0)


def add_line(grad: Tensor, x: Tensor, slope: Tensor, constant: Tensor) -> Tensor:
    """Sum of grad and slope * x + constant, of [R,K] and [K]."""
    compiled = _kernels(x, x.shape[1])
    if compiled is None:
        return torch.addcmul(constant, x, slope).add_(grad)
    out = torch.empty_like(x)
    compiled.add_line(_at(grad), _at(x), _at(slope), _at(constant), *x.shape, _at(out))
    return out


def to_heads(values: Tensor, heads: int) -> Tensor:
    """Rows [R,H*D] as [H,R,D]; they may be columns of a wider table."""
    depth = values.shape[1] // heads
    compiled = _kernels(values, depth)
    if compiled is None or values.stride(1) != 1:
        return values.view(len(values), heads, depth).transpose(0, 1).contiguous()
    out = values.new_empty(heads, len(values), depth)
    compiled.to_heads(values.data_ptr(), len(values), heads, depth, values.stride(0), _at(out))
    return out


def from_heads(values: Tensor, out: Tensor) -> None:
    """Values [H,R,D] as rows [R,H*D], to `out`, which may be columns of a wider table."""
    heads, n_rows, depth = values.shape
    compiled = _kernels(values, depth)
    if compiled is None or out.stride(1) != 1 or not values.is_contiguous():
        out.view(n_rows, heads, depth).copy_(values.transpose(0, 1))
    else:
        compiled.from_heads(_at(values), n_rows, heads, depth, out.stride(0), out.data_ptr())
