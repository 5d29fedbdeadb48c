"""The tree of an expression, and its evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from bhive_mltf.config.expressions.functions import FUNCTIONS, INTEGRAL, OPERATORS, Value


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True)
class Name:
    """A branch or an earlier custom feature."""

    name: str

    def __str__(self) -> str:
        return f"'{self.name}'"


@dataclass(frozen=True)
class Call:
    """A function or an operator with its arguments."""

    function: str
    arguments: tuple[Node, ...]
    options: tuple[tuple[str, Node], ...] = ()

    def __str__(self) -> str:
        options = [f"{key}={value}" for key, value in self.options]
        return f"({' '.join([self.function, *map(str, self.arguments), *options])})"


# Larger integers are not exact in float64.
MAX_INTEGER: Final = 2**53

Node: TypeAlias = Number | Name | Call


def names_of(node: Node) -> Iterator[str]:
    """All names in the tree, with repetitions."""
    if isinstance(node, Name):
        yield node.name
    elif isinstance(node, Call):
        for child in (*node.arguments, *(value for _, value in node.options)):
            yield from names_of(child)


def evaluate(node: Node, values: Mapping[str, Value]) -> Value:
    """The value of the tree; `values` has an array for each of its names."""
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Name):
        return values[node.name]
    arguments = [evaluate(argument, values) for argument in node.arguments]
    options = {key: evaluate(value, values) for key, value in node.options}
    if all(isinstance(argument, (int, float)) for argument in arguments):
        return _constant(node.function, arguments, options)
    return _apply(node.function, arguments, options)


def _apply(function: str, arguments: list[Value], options: dict[str, Value]) -> Value:
    if function in OPERATORS:
        return OPERATORS[function](*arguments)
    return FUNCTIONS[function].call(*arguments, **options)


def _constant(function: str, arguments: list[Value], options: dict[str, Value]) -> Value:
    """A constant stays a Python number, which leaves float32 columns in float32."""
    if function not in INTEGRAL:
        return np.asarray(_apply(function, arguments, options)).item()
    result = float(_apply(function, [float(argument) for argument in arguments], options))
    # Integers of int64 would wrap around.
    integral = all(isinstance(argument, int) for argument in arguments) and abs(result) <= MAX_INTEGER
    return int(result) if integral else result
