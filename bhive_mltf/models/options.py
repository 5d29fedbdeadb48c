"""Checks of the sizes that a user may set. No torch here."""

from __future__ import annotations

from bhive_mltf.errors import ModelError


def at_least(model: str, minimum: int, **sizes: int) -> None:
    """ModelError unless each size is a whole number of at least `minimum`."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < minimum:
            msg = f"model {model}: {name} is {size!r}; give a whole number of at least {minimum}"
            raise ModelError(msg)


def fraction(model: str, **fractions: float) -> None:
    """ModelError unless each value is a number in [0, 1)."""
    for name, value in fractions.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            msg = f"model {model}: {name} is {value!r}; give a number of at least 0 and below 1"
            raise ModelError(msg)


def divisible(model: str, embed_dim: int, num_heads: int) -> None:
    """ModelError unless the heads share the width evenly."""
    if embed_dim % num_heads:
        msg = f"model {model}: embed_dim {embed_dim} is no multiple of num_heads {num_heads}; change one of them"
        raise ModelError(msg)
