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
import math
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
    jet_mb, jet_gflop : what a jet moves and takes in a step; device_gb_per_s, device_tflop_per_s : what the device of a
        rank does while all have theirs (see `limits`). byte_share, flop_share : the parts of both that were reached.
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
    jet_mb: float = math.nan
    jet_gflop: float = math.nan
    device_gb_per_s: float = math.nan
    device_tflop_per_s: float = math.nan

    @property
    def byte_share(self) -> float:
        """Part of the byte limit of the devices that was reached."""
        return self.jets_per_s / self.ranks * self.jet_mb / 1e3 / self.device_gb_per_s

    @property
    def flop_share(self) -> float:
        """Part of the arithmetic limit of the devices that was reached."""
        return self.jets_per_s / self.ranks * self.jet_gflop / 1e3 / self.device_tflop_per_s

    def values(self) -> dict[str, Any]:
        """All of it, by name."""
        return {**asdict(self), "byte_share": self.byte_share, "flop_share": self.flop_share}


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
        writer = csv.DictWriter(file, list(rows[0].values()))
        writer.writeheader()
        writer.writerows(row.values() for row in rows)
    atomic.write_json(directory / "scaling.json", {"conditions": conditions, "rows": [_plain(row) for row in rows]})


def _plain(row: Row) -> dict[str, Any]:
    """JSON has no NaN."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.values().items()}


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


def limits(rows: Sequence[Row]) -> str:
    """How near the rows are to what their devices can do, as text of less than 80 columns; empty where not measured."""
    first = next((row for row in rows if not math.isnan(row.jet_mb)), None)
    if first is None:
        return ""
    lines = [
        f"a jet moves {first.jet_mb:,.1f} MB and takes {first.jet_gflop:.3f} GFLOP; the device of a rank",
        "                GB/s  of the byte limit    TFLOP/s  of the arithmetic limit",
    ]
    lines += [
        f"{row.kind:<7}{row.ranks:>4}{row.device_gb_per_s:>9,.0f}{100 * row.byte_share:>15.1f} %"
        f"{row.device_tflop_per_s:>12,.2f}{100 * row.flop_share:>15.1f} %"
        for row in rows
    ]
    return "\n".join(lines)
