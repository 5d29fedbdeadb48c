"""The words of the expression grammar: operators, functions, constants.

All work element by element. Booleans count as 0 and 1 in arithmetic, so that a sum of labels is a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# A value during evaluation is a numpy array, a numpy scalar, or a Python number.
Value = Any

CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e, "inf": math.inf, "nan": math.nan}
NUMPY_PREFIXES = ("np", "numpy")
AWKWARD_PREFIXES = ("ak", "awkward")
# The functions that awkward shares with numpy; its others look across the candidates of a jet.
AWKWARD_FUNCTIONS = ("where", "nan_to_num")


@dataclass(frozen=True)
class Function:
    """A function of the grammar.

    least, most : number of arguments without a keyword.
    options : keywords that it takes.
    """

    call: Callable[..., Value]
    least: int
    most: int
    options: tuple[str, ...] = ()


def _number(value: Value) -> Value:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype == np.bool_:
        return value.astype(np.int64)
    return value


def _numeric(function: Callable[..., Value]) -> Callable[..., Value]:
    def call(*arguments: Value, **options: Value) -> Value:
        return function(*map(_number, arguments), **options)

    return call


def _power(base: Value, exponent: Value) -> Value:
    # Of integers numpy refuses negative powers and lets large ones wrap around.
    if all(np.asarray(value).dtype.kind == "i" for value in (base, exponent)):
        return np.power(np.asarray(base, np.float64), exponent)
    return np.power(base, exponent)


def _nan_to_num(value: Value, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Value:
    return np.nan_to_num(value, nan=nan, posinf=posinf, neginf=neginf)


def _of_numpy(arguments: int, *names: str) -> dict[str, Function]:
    """Functions of numpy under its own names, all of so many arguments."""
    return {name: Function(_numeric(getattr(np, name)), arguments, arguments) for name in names}


FUNCTIONS: Mapping[str, Function] = {
    **_of_numpy(1, "log", "log1p", "log2", "log10", "exp", "expm1", "sqrt", "square"),
    **_of_numpy(1, "sinh", "cosh", "tanh", "arcsinh", "sin", "cos", "tan", "arctan"),
    **_of_numpy(2, "arctan2", "hypot"),
    "power": Function(_numeric(_power), 2, 2),
    **_of_numpy(1, "abs", "absolute", "sign", "floor"),
    **_of_numpy(2, "minimum", "maximum"),
    "clip": Function(_numeric(np.clip), 1, 3, ("a_min", "a_max")),
    "nan_to_num": Function(_numeric(_nan_to_num), 1, 1, ("nan", "posinf", "neginf")),
    "where": Function(np.where, 3, 3),
    **_of_numpy(1, "isfinite"),
}

OPERATORS: Mapping[str, Callable[..., Value]] = {
    "+": _numeric(np.add),
    "-": _numeric(np.subtract),
    "*": _numeric(np.multiply),
    "/": _numeric(np.true_divide),
    "%": _numeric(np.remainder),
    "**": _numeric(_power),
    "negative": _numeric(np.negative),
    "positive": _numeric(np.positive),
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    # As in numpy: bitwise for integers, logical for comparisons, refused for floats.
    "&": np.bitwise_and,
    "|": np.bitwise_or,
    "~": np.invert,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
}

# Those that turn integers into integers.
INTEGRAL = ("+", "-", "*", "%", "negative", "positive")

GRAMMAR = (
    "numbers, names of branches, + - * / % **, comparisons, & | ~, and/or/not, parentheses, "
    "np.pi np.e np.inf np.nan, and the functions " + " ".join(FUNCTIONS)
)
