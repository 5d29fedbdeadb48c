"""From the text of an expression to its tree.

The text is never run: it is parsed, every part of it is looked up in the tables of `functions`, and
whatever is not there is refused.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from bhive_mltf.config.expressions.functions import (
    AWKWARD_FUNCTIONS,
    AWKWARD_PREFIXES,
    CONSTANTS,
    FUNCTIONS,
    GRAMMAR,
    NUMPY_PREFIXES,
)
from bhive_mltf.config.expressions.nodes import MAX_INTEGER, Call, Name, Node, Number
from bhive_mltf.errors import ExpressionError, nearest

MAX_CHARACTERS: Final = 4000
MAX_NODES: Final = 1000
MAX_DEPTH: Final = 150

_OPERATORS: Final[Mapping[type[ast.AST], str]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.USub: "negative",
    ast.UAdd: "positive",
    ast.Invert: "~",
    ast.Not: "not",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.And: "and",
    ast.Or: "or",
}
_REFUSED: Final[Mapping[type[ast.AST], str]] = {
    ast.IfExp: "if-else (write where(condition, a, b))",
    ast.FloorDiv: "// (write floor(a / b))",
    ast.Attribute: "an attribute",
    ast.Subscript: "a subscript",
    ast.Lambda: "a lambda",
    ast.ListComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.NamedExpr: "an assignment",
}


class _Translator:
    """Translate the syntax tree of one expression; whatever has no rule is refused."""

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self.where = where
        self.nodes = 0
        self.rules: Mapping[type[ast.AST], Callable[[Any, int], Node]] = {
            ast.Constant: self._constant,
            ast.Name: self._name,
            ast.Attribute: self._attribute,
            ast.BinOp: self._binary,
            ast.UnaryOp: self._unary,
            ast.BoolOp: self._boolean,
            ast.Compare: self._compare,
            ast.Call: self._call,
        }

    def refuse(self, what: str) -> NoReturn:
        raise ExpressionError(f"{self.where}: {what}, in the expression `{shorten(self.text)}`")

    def unknown(self, node: ast.AST) -> NoReturn:
        name = _REFUSED.get(type(node), type(node).__name__)
        self.refuse(f"{name} is not part of the grammar, which has {GRAMMAR}")

    def translate(self, node: ast.AST, depth: int) -> Node:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            self.refuse(f"more than {MAX_NODES} parts or {MAX_DEPTH} levels; split it into several features")
        rule = self.rules.get(type(node))
        if rule is None:
            self.unknown(node)
        return rule(node, depth + 1)

    def _constant(self, node: ast.Constant, _: int) -> Node:
        # bool is an int to Python, but True is no number to a physicist.
        if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
            self.refuse(f"{shorten(repr(node.value))} is not a number; the grammar has {GRAMMAR}")
        if isinstance(node.value, int) and node.value > MAX_INTEGER:
            self.refuse("an integer above 2**53; write it as a float")
        return Number(node.value)

    def _name(self, node: ast.Name, _: int) -> Node:
        if node.id in (*NUMPY_PREFIXES, *AWKWARD_PREFIXES):
            self.refuse(f"`{node.id}` is only a prefix of functions, as in np.log")
        return Name(node.id)

    def _attribute(self, node: ast.Attribute, _: int) -> Node:
        if not isinstance(node.value, ast.Name) or node.value.id not in NUMPY_PREFIXES:
            self.unknown(node)
        if node.attr not in CONSTANTS:
            self.refuse(f"there is no constant `{node.value.id}.{node.attr}`, only {', '.join(CONSTANTS)}")
        return Number(CONSTANTS[node.attr])

    def _operator(self, node: ast.AST) -> str:
        return _OPERATORS.get(type(node)) or self.unknown(node)

    def _binary(self, node: ast.BinOp, depth: int) -> Node:
        operator = self._operator(node.op)
        return Call(operator, (self.translate(node.left, depth), self.translate(node.right, depth)))

    def _unary(self, node: ast.UnaryOp, depth: int) -> Node:
        return Call(self._operator(node.op), (self.translate(node.operand, depth),))

    def _boolean(self, node: ast.BoolOp, depth: int) -> Node:
        return _fold(self._operator(node.op), [self.translate(value, depth) for value in node.values])

    def _compare(self, node: ast.Compare, depth: int) -> Node:
        values = [self.translate(value, depth) for value in (node.left, *node.comparators)]
        compared = zip(node.ops, values, values[1:], strict=False)
        return _fold("and", [Call(self._operator(operator), (left, right)) for operator, left, right in compared])

    def _call(self, node: ast.Call, depth: int) -> Node:
        name = self._function_name(node.func)
        function = FUNCTIONS[name]
        if not function.least <= len(node.args) <= function.most:
            count = f"{function.least}" if function.least == function.most else f"{function.least} to {function.most}"
            self.refuse(f"`{name}` takes {count} arguments, not {len(node.args)}")
        options = []
        for keyword in node.keywords:
            if keyword.arg not in function.options:
                self.refuse(f"`{name}` has no keyword `{keyword.arg}`, only {', '.join(function.options) or 'none'}")
            options.append((keyword.arg, self.translate(keyword.value, depth)))
        return Call(name, tuple(self.translate(a, depth) for a in node.args), tuple(options))

    def _function_name(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            name, prefix = node.id, ""
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name, prefix = node.attr, node.value.id
        else:
            self.refuse(f"only functions can be called; the grammar has {GRAMMAR}")
        if prefix in AWKWARD_PREFIXES and name not in AWKWARD_FUNCTIONS:
            self.refuse(
                f"`{prefix}.{name}` is not part of the grammar: of awkward it has only the elementwise "
                f"{', '.join(AWKWARD_FUNCTIONS)}, since a custom feature is computed candidate by candidate"
            )
        if prefix not in ("", *NUMPY_PREFIXES, *AWKWARD_PREFIXES):
            self.refuse(f"`{prefix}.{name}` is not part of the grammar; functions are written `{name}` or `np.{name}`")
        if name not in FUNCTIONS:
            self.refuse(f"there is no function `{name}`; there are {', '.join(nearest(name, FUNCTIONS))}")
        return name


def shorten(text: str) -> str:
    """At most 120 characters, for a message."""
    return text if len(text) <= 120 else f"{text[:117]}..."


def _fold(operator: str, values: list[Node]) -> Node:
    result = values[0]
    for value in values[1:]:
        result = Call(operator, (result, value))
    return result


def translate(text: str, where: str) -> Node:
    """The tree of `text`; ExpressionError for what is outside the grammar."""
    return _Translator(text, where).translate(_syntax_tree(text, where), 0)


def _syntax_tree(text: str, where: str) -> ast.expr:
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"{where}: the expression has {len(text)} characters, at most {MAX_CHARACTERS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ExpressionError(
            f"{where}: `{shorten(text)}` is not an expression: {error.msg} at character {error.offset}"
        ) from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise ExpressionError(f"{where}: `{shorten(text)}` cannot be read: {shorten(str(error))}") from error
