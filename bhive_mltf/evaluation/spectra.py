"""The spectra in pt and eta of each truth label, before and after weighted sampling.

K: truth labels; P, E: bins in pt and eta.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bhive_mltf.data.weighting.report import WeightingReport
from bhive_mltf.evaluation import figures

STEM = "spectra"
_DECADES = 5


def draw_spectra(directory: str | Path, target: str | Path | None = None) -> str:
    """Draw `spectra.{png,pdf}` of the training set in `directory`, there or in `target`; the name of the PNG file.

    Raises
    ------
    CorruptFileError
        The set has no readable `weighting.json`.
    """
    directory = Path(directory)
    report, weights = WeightingReport.read(directory)
    figure = spectra_figure(np.load(directory / "histogram.npy"), weights, report)
    return figures.save(figure, target or directory, STEM)


def spectra_figure(
    histogram: NDArray[np.floating],
    weights: NDArray[np.float64],
    report: WeightingReport,
) -> Figure:
    """Four panels: pt and eta, all jets and the expected jets of a weighted epoch; the reference is drawn thick.

    Parameters
    ----------
    histogram, weights : [K,P,E].
    """
    before, after = histogram.astype(np.float64), histogram * weights
    names = [f"{each.label} (reference)" if each.label == report.reference else each.label for each in report.labels]
    titles = ("all jets", f"expected per epoch, weighting {report.weighting}")
    with figures.cms_style():
        figure = figures.new_figure((20.0, 17.5))
        figure.subplots_adjust(left=0.075, right=0.985, bottom=0.06, top=0.9, wspace=0.18, hspace=0.2)
        panels = figure.subplots(2, 2)
        for row, (summed, edges, quantity, unit) in enumerate(_projections(report)):
            densities = [part.sum(axis=summed) / np.diff(edges) for part in (before, after)]
            for axes, density, title in zip(panels[row], densities, titles, strict=True):
                _draw(axes, edges, density, names)
                axes.set(yscale="log", ylim=_range(densities), xlim=(edges[0], edges[-1]))
                axes.set(xlabel=quantity, ylabel=f"jets / {unit}")
                axes.text(0.97, 0.96, title, transform=axes.transAxes, ha="right", va="top")
        for axes in panels[0]:
            _show_pt(axes, np.asarray(report.grid.pt))
        figures.stamp(panels[0, 0], panels[0, 1])
        _legend(figure, panels[0, 0])
    return figure


def _projections(report: WeightingReport) -> tuple[tuple[int, NDArray[np.float64], str, str], ...]:
    """Axis of [K,P,E] that is summed over, edges of the other, what it is and its unit."""
    grid = report.grid
    pt = (2, np.asarray(grid.pt), "jet $p_T$ [GeV]", "GeV")
    return pt, (1, np.asarray(grid.eta), r"jet $\eta$", r"unit of $\eta$")


def _draw(axes: Axes, edges: NDArray[np.float64], density: NDArray[np.float64], names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        colour, line = figures.colour_and_line(number)
        style: dict[str, Any] = {"color": colour, "ls": line, "lw": 2.0}
        if name.endswith(" (reference)"):
            style = {"color": "black", "ls": "-", "lw": 4.0, "zorder": 3}
        shown = np.where(density[number] > 0, density[number], np.nan)
        axes.stairs(shown, edges, baseline=None, label=name, **style)


def _legend(figure: Figure, axes: Axes) -> None:
    """A legend above the panels in the largest font that fits."""
    entries = axes.get_legend_handles_labels()
    for size in (20, 16, 12, 8):
        legend = figure.legend(
            *entries, loc="upper center", ncols=min(6, len(entries[0])), fontsize=size, columnspacing=1.2
        )
        if size == 8 or legend.get_window_extent().width <= 0.98 * figure.bbox.width:
            return
        legend.remove()


def _range(densities: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Limits that both panels of a row share, with room for a line of text."""
    values = np.concatenate([each[each > 0] for each in densities])
    low, high = float(values.min()), float(values.max())
    low = max(low, high * 10.0**-_DECADES)
    return low / 2, high * (high / low) ** 0.15 * 2


def _show_pt(axes: Axes, edges: NDArray[np.float64]) -> None:
    """A logarithmic axis with plain numbers where the bins span a factor of five or more."""
    if edges[0] <= 0 or edges[-1] < 5 * edges[0]:
        return
    axes.set_xscale("log")
    ticks = [t for power in range(6) for t in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)]
    ticks = [t for t in ticks if edges[0] <= t <= edges[-1]]
    axes.set_xticks(ticks, labels=[f"{t:g}" for t in ticks])
    axes.minorticks_off()
