"""What a branch or field holds per entry, and how uproot is to read it.

uproot 5.7 takes the counter in the title of a list of `Float16_t` or `Double32_t` for its range of values, and reads no
`std::vector` of them; both are interpreted here.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import uproot
from uproot.interpretation.numerical import AsDouble32, AsFloat16, Numerical

from bhive_mltf.errors import DataError

_PACKED_LEAVES = {"TLeafF16": "Float16_t", "TLeafD32": "Double32_t"}
_PACKED_VECTOR = re.compile(r"(?:std::)?vector<(Float16_t|Double32_t)>")
# Byte count, version, number of elements.
_VECTOR_HEADER = 10
_CONSTANTS = {"pi": math.pi, "twopi": 2 * math.pi}


def tree_columns(tree: Any, names: Sequence[str], path: str) -> tuple[dict[str, Any], frozenset[str]]:  # noqa: ANN401
    """Interpretations of the branches `names` of a tree, and those of the names that are lists of numbers.

    Raises
    ------
    DataError
        A branch is neither one number nor a list of numbers per entry.
    """
    interpretations = {name: _interpretation(tree[name]) for name in names}
    lists = set()
    for name, interpretation in interpretations.items():
        content = interpretation
        if isinstance(interpretation, uproot.AsJagged):
            lists.add(name)
            content = interpretation.content
        if not isinstance(content, Numerical) or content.to_dtype.names or content.to_dtype.shape:
            raise _refused(name, path, tree[name].member("fClassName", none_if_missing=True) or _typename(tree[name]))
    return interpretations, frozenset(lists)


def ntuple_lists(ntuple: Any, names: Sequence[str], path: str) -> frozenset[str]:  # noqa: ANN401
    """Those of the fields `names` of an RNTuple that are lists of numbers; DataError as for a tree."""
    empty = ntuple.arrays(list(names), entry_stop=0, library="ak", how=dict)
    lists = set()
    for name in names:
        form = content = empty[name].layout.form
        if form.is_list and not form.parameters:
            lists.add(name)
            content = form.content
        if not content.is_numpy or content.inner_shape:
            raise _refused(name, path, ntuple[name].typename)
    return frozenset(lists)


def _refused(name: str, path: str, typename: str) -> DataError:
    return DataError(
        f"the branch `{name}` of '{path}' is of type {typename}, which is neither a number nor a list of numbers per "
        "jet: remove it from the config"
    )


def _typename(branch: Any) -> str:  # noqa: ANN401
    try:
        return str(branch.typename)
    except Exception:  # noqa: BLE001 - uproot's readers of types raise what they like
        return "unknown"


def _interpretation(branch: Any) -> Any:  # noqa: ANN401
    leaves = branch.member("fLeaves")
    vector = _PACKED_VECTOR.fullmatch(branch.member("fClassName", none_if_missing=True) or "")
    if vector and not branch.branches:
        return uproot.AsJagged(packed(vector[1], None), header_bytes=_VECTOR_HEADER)
    if len(leaves) == 1 and leaves[0].classname in _PACKED_LEAVES:
        title = leaves[0].member("fTitle")
        number = packed(_PACKED_LEAVES[leaves[0].classname], _range_of(title), _dimensions(leaves[0]))
        return number if leaves[0].member("fLeafCount") is None else uproot.AsJagged(number)
    return branch.interpretation


def _dimensions(leaf: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Of an array of fixed size in each entry, which is refused later."""
    length = leaf.member("fLen")
    return (length,) if length > 1 else ()


def _range_of(title: str) -> tuple[float, float, int | None] | None:
    """Low, high and bits of a leaf's title such as `x[n]/d[-pi,pi,20]`; None where it says no range."""
    found = re.search(r"/[df]\[([^]]*)\]\s*$", title) or re.search(r"\[([^],]*,[^]]*)\]\s*$", title)
    if found is None:
        return None
    low, high, *bits = found[1].split(",")
    return _number(low), _number(high), int(_number(bits[0])) if bits else None


def _number(text: str) -> float:
    """The value of `1.5`, `-pi`, `2*pi` or `twopi/4`; ValueError for anything else."""
    return _value(ast.parse(text.strip(), mode="eval").body)


def _value(node: ast.AST) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id=name) if name.lower() in _CONSTANTS:
            return _CONSTANTS[name.lower()]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(op=ast.Mult(), left=left, right=right):
            return _value(left) * _value(right)
        case ast.BinOp(op=ast.Div(), left=left, right=right):
            return _value(left) / _value(right)
    raise ValueError(f"the range of a branch cannot be read: {ast.unparse(node)}")


def packed(kind: str, spec: tuple[float, float, int | None] | None, dims: tuple[int, ...] = ()) -> Numerical:
    """How numbers of `Float16_t` or `Double32_t` are stored; rules of ROOT's `TStreamerElement::GetRange`.

    spec : low, high and bits as declared; a range is stored in 32-bit integers, without one a truncated mantissa
        (`Float16_t`: 12 bits if none are given) or, for `Double32_t` without bits, a float.
    """
    low, high, bits = spec or (0.0, 0.0, None)
    if low < high:
        bits = 32 if bits is None or not 2 <= bits <= 32 else bits
        return AsFloat16(low, high, bits, dims) if kind == "Float16_t" else AsDouble32(low, high, bits, dims)
    if kind == "Float16_t":
        return AsFloat16(0, 0, bits if bits is not None and 2 <= bits < 15 else 12, dims)
    if bits is not None and 2 <= bits < 15:
        return AsDouble32(0, 0, bits, dims)
    return uproot.AsDtype(np.dtype((">f4", dims)), np.dtype(("f8", dims)))
