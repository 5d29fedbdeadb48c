"""Figures in CMS style, drawn through matplotlib's object interface: no window, no state shared between figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from bhive_mltf.evaluation.statistics import Area, Curve, WorkingPoint, binomial_interval
from bhive_mltf.files import atomic

if TYPE_CHECKING:
    from bhive_mltf.config import ProcessCuts
    from bhive_mltf.evaluation.discriminators import Discriminator

# ten colours that stay apart for colour-blind readers: Petroff, arXiv:2107.02270, as CMS recommends
COLOURS = (
    "#3f90da", "#bd1f01", "#ffa90e", "#832db6", "#94a4a2", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v")
NOTE = "Private work"
ENERGY_TEV = 13.6


@contextmanager
def cms_style() -> Iterator[None]:
    """CMS style of mplhep (or matplotlib's own where mplhep is not installed), for drawing and for saving."""
    settings: Any = {"figure.figsize": (10.0, 10.0)}
    try:
        import mplhep
    except ImportError:
        pass
    else:
        settings |= mplhep.style.CMS
    settings |= {"font.size": 22, "axes.grid": True, "grid.alpha": 0.6, "savefig.dpi": 100}
    # an opaque legend keeps the grid out of its text
    settings |= {"legend.frameon": True, "legend.framealpha": 1.0, "legend.edgecolor": "none"}
    settings |= {"axes.prop_cycle": cycler(color=list(COLOURS)), "axes.axisbelow": True}
    with mpl.rc_context(settings):
        yield


def save(figure: Figure, directory: str | Path, stem: str, suffixes: Sequence[str] = ("png", "pdf")) -> str:
    """Write `<stem>.png` and then `<stem>.pdf`, each whole; the name of the PNG file."""
    with cms_style():
        for suffix in suffixes:
            metadata: dict[str, Any] = {"CreationDate": None} if suffix == "pdf" else {}
            with atomic.replace_file(Path(directory) / f"{stem}.{suffix}") as path:
                figure.savefig(path, format=suffix, metadata=metadata)
    return f"{stem}.png"


def colour_and_line(number: int) -> tuple[str, str]:
    """Colour and line style of the curve `number` of a figure; no two of the first forty are alike."""
    return COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]


def auc_text(area: Area) -> str:
    """Area and error, in digits that mean something."""
    if np.isnan(area.error):
        return f"{area.auc:.3f}"
    digits = int(np.clip(-np.floor(np.log10(max(area.error, 1e-5))) + 1, 2, 5))
    return f"{area.auc:.{digits}f} $\\pm$ {area.error:.{digits}f}"


def caption(process: str, cuts: ProcessCuts | None = None) -> str:
    """Which jets a figure shows."""
    lines = ["all processes" if process == "all" else process.replace("$", r"\$")]
    if cuts is not None:
        lines += _range(cuts.pt_min, "$p_T$", cuts.pt_max, " GeV") + _range(cuts.eta_min, r"$\eta$", cuts.eta_max, "")
    return ", ".join(lines)


@dataclass(frozen=True)
class Drawn:
    """A curve of a figure, with its working points where they are shown."""

    discriminator: Discriminator
    curve: Curve
    area: Area
    points: tuple[WorkingPoint, ...] = ()


def roc_figure(curves: Sequence[Drawn], jets: str) -> Figure:
    """ROC curves with the binomial uncertainty of their mistag rates; `jets` says which jets they show.

    Working points are drawn with their uncertainties; the legend lists those of a single curve.
    """
    several = len(curves) > 1
    with cms_style():
        figure, axes = panel()
        for number, drawn in enumerate(curves):
            legend = f"{drawn.discriminator.title}: {'' if several else 'AUC = '}{auc_text(drawn.area)}"
            colour = _draw(axes, drawn.curve, legend, number)
            reached = [point for point in drawn.points if not point.reason]
            for marker, point in zip(cycle(MARKERS), reached, strict=False):
                _draw_point(axes, point, marker, colour if several else None)
        n_background = max(drawn.curve.n_background for drawn in curves)
        _finish(axes, n_background, _labels(curves), f"{jets}; AUC:" if several else jets)
    return figure


def loss_curves(
    train: Mapping[str, Sequence[float]],
    validation: Mapping[str, Sequence[float]],
    directory: str | Path,
) -> tuple[str, ...]:
    """Draw `loss.{pdf,png}` and `acc.{pdf,png}` of a training into `directory`; the names of the PNG files.

    train, validation : histories `loss` and `acc`, one value per epoch, first epoch first; they may differ in length,
    and a history that is missing or empty is not drawn.
    """
    made = []
    for key, name in (("loss", "loss"), ("acc", "accuracy")):
        histories = {"training": train.get(key, ()), "validation": validation.get(key, ())}
        drawn = {label: np.asarray(values, dtype=np.float64) for label, values in histories.items() if len(values)}
        if drawn:
            made.append(save(_history(drawn, name), directory, key))
    return tuple(made)


def _history(histories: Mapping[str, np.ndarray], quantity: str) -> Figure:
    with cms_style():
        figure, axes = panel()
        for number, (label, values) in enumerate(histories.items()):
            marker = "o" if len(values) <= 50 else ""
            axes.plot(np.arange(1, len(values) + 1), values, LINES[number], marker=marker, lw=2.5, label=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(y=0.12)
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.legend(loc="best")
    return figure


def _labels(curves: Sequence[Drawn]) -> tuple[str, str]:
    if len(curves) > 1:
        return "signal efficiency", "mis-id. rate"
    only = curves[0].discriminator
    return f"{only.signal_name}-identification efficiency", f"{only.background_name} mis-id. rate"


def panel(energy_tev: float | None = ENERGY_TEV) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; with the centre-of-mass energy unless that is None."""
    figure = new_figure()
    figure.subplots_adjust(left=0.15, right=0.96, bottom=0.11, top=0.93)
    axes = figure.add_subplot()
    stamp(axes, axes, energy_tev)
    return figure, axes


def new_figure(size: tuple[float, float] | None = None) -> Figure:
    """An empty figure of `size` inches, to be drawn and saved in `cms_style`."""
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure


def stamp(axes: Axes, last: Axes, energy_tev: float | None = ENERGY_TEV) -> None:
    """What stands on every figure: "Simulation" and a note above `axes`, the energy above `last` in the same row."""
    first = axes.text(0.0, 1.01, "Simulation", transform=axes.transAxes, weight="bold", va="bottom", size=24)
    axes.annotate(
        NOTE, xy=(1.0, 0.0), xycoords=first, xytext=(8, 0), textcoords="offset points", style="italic", size=20,
        va="bottom",
    )  # fmt: skip
    if energy_tev is not None:
        energy = f"({energy_tev:g} TeV)"
        last.text(1.0, 1.01, energy, transform=last.transAxes, ha="right", va="bottom", size=20)


def _draw(axes: Axes, curve: Curve, legend: str, number: int) -> str:
    """Draw a curve and the binomial uncertainty of its mistag rate; its colour."""
    colour, line = colour_and_line(number)
    shown = curve.mistag > 0
    efficiency, mistag = curve.efficiency[shown], curve.mistag[shown]
    low, up = binomial_interval(np.rint(mistag * curve.n_background), curve.n_background)
    axes.plot(efficiency, mistag, line, color=colour, lw=2.5, label=legend)
    axes.fill_between(efficiency, np.maximum(low, 1e-12), up, color=colour, alpha=0.2, lw=0)
    return colour


def _draw_point(axes: Axes, point: WorkingPoint, marker: str, colour: str | None) -> None:
    """Draw a working point; with its efficiency in the legend where it has no colour of its curve."""
    if point.mistag <= 0:
        return
    axes.errorbar(
        point.efficiency,
        point.mistag,
        xerr=[[point.efficiency - point.efficiency_low], [point.efficiency_up - point.efficiency]],
        yerr=[[point.mistag - point.mistag_low], [point.mistag_up - point.mistag]],
        fmt=marker,
        ms=10,
        color=colour or "black",
        capsize=4,
        lw=1.5,
        zorder=5,
        label=None if colour else f"mis-id. {point.wp:g}: efficiency {_percent(point)}",
    )


def _finish(axes: Axes, n_background: int, labels: tuple[str, str], title: str) -> None:
    """Limits, labels, and the legend in a strip of its own above a mistag rate of one."""
    n_entries = len(axes.get_legend_handles_labels()[0])
    n_columns = 1 if n_entries <= 6 else 2
    strip = 0.06 + 0.045 * (1 + -(-n_entries // n_columns))
    lowest = -5 if n_background >= 1e6 else -4  # a decade more where ten jets fall into it
    axes.set_yscale("log")
    axes.set_ylim(10.0**lowest, 10.0 ** (-lowest * strip / (1 - strip)))
    axes.set_xlim(0.0, 1.0)
    axes.set_yticks([10.0**power for power in range(lowest, 1)])
    minor = [digit * 10.0**power for power in range(lowest, 0) for digit in range(2, 10)]
    axes.set_yticks(minor, labels=[""] * len(minor), minor=True)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    fitting_legend(axes, title, n_columns)


def fitting_legend(axes: Axes, title: str, n_columns: int) -> None:
    """A legend in the largest font that does not reach over the axes: class names may be long."""
    for size in (18, 16, 14, 12, 10, 8):
        legend = axes.legend(
            loc="upper left",
            title=title,
            alignment="left",
            ncols=n_columns,
            fontsize=size,
            title_fontsize=size,
            labelspacing=0.3,
            columnspacing=1.0,
        )
        if legend.get_window_extent().width <= 0.98 * axes.get_window_extent().width:
            return


def _percent(point: WorkingPoint) -> str:
    error = (point.efficiency_up - point.efficiency_low) / 2
    return f"({100 * point.efficiency:.1f} $\\pm$ {100 * error:.1f})%"


def _range(low: float | None, name: str, high: float | None, unit: str) -> list[str]:
    if low is None and high is None:
        return []
    if low is None:
        return [f"{name} < {high:g}{unit}"]
    if high is None:
        return [f"{name} > {low:g}{unit}"]
    if low == -high:
        return [f"|{name}| < {high:g}{unit}"]
    return [f"{low:g} < {name} < {high:g}{unit}"]
