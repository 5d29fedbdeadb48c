"""The collector of cyclic garbage, kept away from what stays anyway."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def frozen_gc() -> Iterator[None]:
    """For work that makes many objects: collections do not go through those that are there already.

    Reading a tree, or a step of a network, would make the collector look at all imported modules again and again.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
