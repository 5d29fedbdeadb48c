"""Figure of a scaling measurement: throughput over ranks, and where the time of a step goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bhive_mltf.evaluation.figures import COLOURS, cms_style, new_figure, save

_FONT = 15
Rows = Sequence[Mapping[str, Any]]


def scaling_figure(rows: Rows, parts: Sequence[str], caption: str, directory: str | Path) -> str:
    """Draw `scaling.{png,pdf}` into `directory`; the name of the PNG file.

    rows : kind, ranks, jets_per_s, batch_size and, in seconds per step, the `parts`.
    caption : the conditions, below the panels; may have several lines.
    """
    with cms_style():
        figure = new_figure((15.0, 7.5))
        figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1))
        speed, shares = figure.subplots(1, 2, width_ratios=(2, 3))
        _draw_speed(speed, rows)
        _draw_parts(shares, rows, parts)
        for axes in (speed, shares):
            axes.tick_params(labelsize=_FONT)
            axes.legend(fontsize=_FONT - 2, loc="upper left", ncols=2 if axes is shares else 1)
        figure.supxlabel(caption, fontsize=_FONT - 3)
    return save(figure, directory, "scaling")


def _draw_speed(axes: Axes, rows: Rows) -> None:
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for number, kind in enumerate(kinds):
        points = sorted((row["ranks"], row["jets_per_s"]) for row in rows if row["kind"] == kind)
        axes.plot(*zip(*points, strict=True), marker="os"[number % 2], lw=2.5, ms=9, label=kind, color=COLOURS[number])
    base = min(rows, key=lambda row: row["ranks"])
    ranks = sorted({row["ranks"] for row in rows})
    ideal = [base["jets_per_s"] * rank / base["ranks"] for rank in ranks]
    axes.plot(ranks, ideal, ":", color="black", lw=2, label="proportional")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.margins(0.1)
    axes.set_ylim(0, 1.3 * max(ideal[-1], *(row["jets_per_s"] for row in rows)))
    axes.set_xlabel("ranks", fontsize=_FONT + 2)
    axes.set_ylabel("jets per second", fontsize=_FONT + 2)


def _draw_parts(axes: Axes, rows: Rows, parts: Sequence[str]) -> None:
    places = np.arange(len(rows))
    bottom = np.zeros(len(rows))
    for number, part in enumerate(parts):
        heights = 1e3 * np.array([row[part] for row in rows])
        axes.bar(places, heights, 0.65, bottom=bottom, label=part, color=COLOURS[number])
        bottom += heights
    labels = [
        f"{row['kind']}\n{row['ranks']} rank{'s' if row['ranks'] > 1 else ''}\n{row['batch_size']}" for row in rows
    ]
    axes.set_xticks(places, labels, fontsize=_FONT)
    axes.minorticks_off()
    axes.set_ylim(0, 1.35 * bottom.max())
    axes.set_xlabel("kind, ranks, global batch", fontsize=_FONT + 2)
    axes.set_ylabel("ms per step", fontsize=_FONT + 2)
