"""Custom features: a closed grammar of elementwise arithmetic on branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.config.expressions.nodes import Node, evaluate, names_of
from bhive_mltf.config.expressions.translation import shorten, translate
from bhive_mltf.errors import ExpressionError, MissingBranchError, nearest


def _widened(value: NDArray[Any]) -> NDArray[Any]:
    # Short and unsigned integers of a branch would wrap around in differences.
    array = np.asarray(value)
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


@dataclass(frozen=True)
class Expression:
    """An expression of the grammar.

    text : as written, white space normalised.
    where : place in the config, for messages.
    names : branches and custom features that it needs.
    """

    text: str
    where: str
    root: Node
    names: frozenset[str]

    @staticmethod
    @lru_cache(4096)
    def parse(text: str, where: str = "expression") -> Expression:
        """Read `text`; a conversion asks for the same ones again for each file.

        Raises
        ------
        ExpressionError
            It is no expression, or has a part outside the grammar, or names no branch.
        """
        text = " ".join(text.split())
        root = translate(text, where)
        names = frozenset(names_of(root))
        if not names:
            raise ExpressionError(f"{where}: the expression `{shorten(text)}` is a constant; it must name a branch")
        expression = Expression(text, where, root, names)
        # Integers are what every function and operator accepts, so this fails only for what can never work.
        expression.evaluate(dict.fromkeys(names, np.ones(1, np.int64)))
        return expression

    @property
    def canonical(self) -> str:
        """The meaning without white space, prefixes and parentheses of the text; for digests."""
        return str(self.root)

    def evaluate(self, values: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Compute element by element, as numpy does; infinities and NaN arise without warnings.

        Parameters
        ----------
        values : arrays of one shape, at least those of `names`.

        Returns
        -------
        array of that shape

        Raises
        ------
        MissingBranchError
            A name has no array.
        ExpressionError
            numpy cannot apply an operator to the type of a branch, e.g. `&` to floats.
        """
        missing = sorted(self.names - values.keys())
        if missing:
            near = ", ".join(nearest(missing[0], values))
            raise MissingBranchError(f"{self.where}: there is no branch `{missing[0]}`; nearest: {near}")
        try:
            with np.errstate(all="ignore"):
                return np.asarray(evaluate(self.root, {name: _widened(values[name]) for name in self.names}))
        except (TypeError, ValueError, OverflowError) as error:
            raise ExpressionError(
                f"{self.where}: cannot compute `{shorten(self.text)}` ({shorten(str(error))}); "
                "& | ~ take comparisons or integers"
            ) from error
