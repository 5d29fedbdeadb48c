"""What a scaling measurement says, as rows, files and text. No torch here.

weak : as many jets per rank, whatever the ranks; the global batch grows. strong : the same global batch, shared by more
ranks.

Parts of a step. loader : waiting for the batch. forward, backward : of the network, with the messages of batch norms.
communication : what of the sum of gradients was not hidden behind the backward pass; waiting for slower ranks counts
there; 0 on a GPU, where it counts as backward. update : of the optimiser. rest : moving the batch to the device, the
loss, agreement of the ranks.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bhive_mltf.errors import ParameterError
from bhive_mltf.files import atomic

KINDS = ("weak", "strong")
PARTS = ("loader", "forward", "backward", "communication", "update", "rest")


@dataclass(frozen=True)
class Row:
    """One measurement. Times in seconds per step: the slowest rank's for `step`, else means over the ranks.

    speedup : jets/s over those of the smallest number of ranks; efficiency : that over the ratio of ranks.
    """

    kind: str
    ranks: int
    batch_size: int
    jets_per_s: float
    speedup: float
    efficiency: float
    step: float
    loader: float
    forward: float
    backward: float
    communication: float
    update: float
    rest: float


def check(world_sizes: Sequence[int], batch_size: int, steps: int, warm_up: int) -> None:
    """ParameterError for numbers that cannot be measured."""
    if not world_sizes or min(world_sizes) < 1 or len(set(world_sizes)) < len(world_sizes):
        given = ",".join(map(str, world_sizes))
        raise ParameterError(f"--world-sizes is '{given}', but must be different numbers of ranks from 1, as in 1,2,4")
    if max(world_sizes) > batch_size:
        raise ParameterError(f"--batch-size is {batch_size}, fewer jets than the {max(world_sizes)} ranks")
    if steps < 1 or warm_up < 1:
        raise ParameterError(f"--steps is {steps} and --warm-up-steps {warm_up}, but both must be 1 or more")


def write_rows(rows: Sequence[Row], conditions: dict[str, Any], directory: Path) -> None:
    """`scaling.csv`, and `scaling.json` with the conditions, which comes last."""
    with atomic.replace_file(directory / "scaling.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    atomic.write_json(directory / "scaling.json", {"conditions": conditions, "rows": [asdict(row) for row in rows]})


def table(rows: Sequence[Row]) -> str:
    """The rows as text of less than 80 columns; parts in percent of their sum."""
    lines = [
        "                                        ms per           percent of the step",
        "kind    ranks  batch   jets/s  x    eff.  step   load fwd bwd comm upd rest",
    ]
    for row in rows:
        parts = [getattr(row, part) for part in PARTS]
        shares = [f"{100 * part / max(sum(parts), 1e-12):.0f}" for part in parts]
        widths = (4, 3, 3, 4, 3, 4)
        columns = " ".join(share.rjust(width) for share, width in zip(shares, widths, strict=True))
        lines.append(
            f"{row.kind:<7}{row.ranks:>6}{row.batch_size:>7}{row.jets_per_s:>9,.0f} {row.speedup:<5.2f}"
            f"{row.efficiency:<5.2f}{1e3 * row.step:>6.0f}  {columns}"
        )
    return "\n".join(lines)
