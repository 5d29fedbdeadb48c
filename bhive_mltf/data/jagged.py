"""Candidates of chosen jets, from wherever they lie to padded arrays.

J: jets chosen; N: candidates, padding included; S: candidates of the chosen jets and one empty one behind each jet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bhive_mltf.data.storage import Plane

# Numbers of candidates are stored in 16 bits.
_STEPS = np.arange(2**16)


class Scratch:
    """Arrays that are used again and again, so that no fresh memory is touched."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def get(self, name: str, shape: tuple[int, int], kind: type[np.generic]) -> NDArray[Any]:
        """An array with any content; the same memory for the same name, which belongs to one `kind`."""
        size = shape[0] * shape[1]
        array = self._arrays.get(name)
        if array is None or array.size < size:
            array = self._arrays[name] = np.empty(size + size // 8, kind)
        return array[:size].reshape(shape)


@dataclass(frozen=True)
class Picked:
    """Columns of a stored plane that go to the columns `target` of an array.

    source : int64 tensor, positions in the plane; None: the plane as it is.
    """

    plane: int
    source: torch.Tensor | None
    target: NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """How the planes of a group become features and four-vectors.

    planes : those needed.
    features, vectors : where their columns come from; `vectors` is empty if they are not asked for.
    """

    planes: tuple[Plane, ...]
    features: tuple[Picked, ...]
    vectors: tuple[Picked, ...]

    @classmethod
    def of(cls, stored: Sequence[Plane], features: Sequence[int], vectors: Sequence[int]) -> Recipe:
        """The recipe for columns given by their positions in the group."""
        wanted = {*features, *vectors}
        # Of a group without wanted columns, the number of candidates counts still.
        planes = tuple(p for p in stored if wanted.intersection(p.positions)) or tuple(stored[:1])
        return cls(planes, _picked(planes, features), _picked(planes, vectors))


def _picked(planes: Sequence[Plane], wanted: Sequence[int]) -> tuple[Picked, ...]:
    picked = []
    for number, plane in enumerate(planes):
        target = [i for i, column in enumerate(wanted) if column in plane.positions]
        if target:
            source = [plane.positions.index(wanted[i]) for i in target]
            whole = source == list(range(len(plane.positions)))
            picked.append(Picked(number, None if whole else torch.tensor(source), np.array(target)))
    return tuple(picked)


def gather(
    memory: Sequence[memoryview],
    where: NDArray[np.intp] | None,
    begins: NDArray[np.int64],
    counts: NDArray[np.int64],
    plane: Plane,
) -> NDArray[Any]:
    """Candidates of chosen jets, [S,F] of the plane's type, each jet's followed by an empty one.

    Parameters
    ----------
    memory, where : pieces of memory, and the number of the one that holds each jet [J]; None: all in the first.
    begins : [J], first byte of each jet.
    counts : [J], candidates to take.
    """
    empty = bytes(plane.row_bytes)
    ends = begins + counts * plane.row_bytes
    # One copy per jet: a jet's candidates lie next to each other.
    parts: list[memoryview | bytes] = [empty] * (2 * len(begins))
    if where is None:
        whole = memory[0]
        parts[::2] = [whole[a:z] for a, z in zip(begins.tolist(), ends.tolist(), strict=True)]
    else:
        places = zip(where.tolist(), begins.tolist(), ends.tolist(), strict=True)
        parts[::2] = [memory[m][a:z] for m, a, z in places]
    return np.frombuffer(bytearray().join(parts), plane.type).reshape(-1, len(plane.positions))


def assemble(
    raw: Sequence[NDArray[Any]], picked: Sequence[Picked], width: int, scratch: Scratch, name: str
) -> NDArray[np.float32]:
    """The wanted columns, float32 [S,F], of gathered planes."""
    wide = [_wide(raw[p.plane], scratch, f"{name}/{p.plane}") for p in picked]
    if len(picked) == 1 and picked[0].source is None:
        return wide[0]
    result = scratch.get(name, (len(raw[0]), width), np.float32)
    for values, pick in zip(wide, picked, strict=True):
        if pick.source is not None and len(picked) == 1:
            torch.index_select(torch.from_numpy(values), 1, pick.source, out=torch.from_numpy(result))
        elif pick.source is not None:
            result[:, pick.target] = torch.index_select(torch.from_numpy(values), 1, pick.source).numpy()
        else:
            result[:, pick.target] = values
    return result


def _wide(values: NDArray[Any], scratch: Scratch, name: str) -> NDArray[np.float32]:
    """float16 as float32; torch converts many times faster than numpy."""
    if values.dtype == np.float32:
        return values
    result = scratch.get(f"{name}/wide", values.shape, np.float32)
    torch.from_numpy(result).copy_(torch.from_numpy(values))
    return result


def padded_rows(counts: NDArray[np.int64], length: int, scratch: Scratch) -> NDArray[np.int64]:
    """Rows [J,N] of what `gather` gives for `counts` [J] candidates; padding points to a jet's empty one."""
    empty = np.cumsum(counts + 1) - 1
    rows = scratch.get("rows", (len(counts), length), np.int64)
    np.add((empty - counts)[:, None], _STEPS[:length], out=rows)
    np.minimum(rows, empty[:, None], out=rows)
    return rows


def pad(values: NDArray[np.float32], rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Write `values` [S,F] at `rows` [J,N] to `out` [J,N,F]."""
    # mode="clip" spares numpy a buffered copy of the output; every index is in range.
    values.take(rows, axis=0, out=out, mode="clip")
