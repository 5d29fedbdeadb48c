"""Figures of input histograms: per feature one of each truth label, and one of all labels together."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bhive_mltf.data.schema import GLOBAL
from bhive_mltf.errors import CorruptFileError
from bhive_mltf.evaluation import figures
from bhive_mltf.evaluation.inputs.features import COMBINED, InputFeature, figure_names
from bhive_mltf.evaluation.inputs.processes import in_processes

_COUNTED = {GLOBAL: "jets", "vtx": "vertices", "lt": "lost tracks"}
_DECADES = 6
_FEW_BINS = 13


@dataclass(frozen=True)
class Look:
    """How the figures of a set are drawn.

    ylog : logarithmic counts.
    weighted : the histograms are those of weighted jets.
    """

    ylog: bool = True
    weighted: bool = False


def draw_inputs(
    path: Path,
    features: Sequence[InputFeature],
    labels: Sequence[str],
    directory: Path,
    *,
    look: Look,
    n_workers: int = 1,
) -> None:
    """Draw the histograms in the file `path`: `<feature>/<label>[_weight][_ylog].png`, and `<feature>/all...`.

    Raises
    ------
    CorruptFileError
        The file is not whole, or lacks a histogram.
    DataError
        A process was killed.
    """
    with_counts = [(feature, _read(path, feature, labels)) for feature in features]
    draw = functools.partial(_draw_feature, directory=directory, look=look)
    killed = "a process that draws figures was killed: use fewer --n-workers"
    list(in_processes(draw, with_counts, n_workers, killed))


def _read(path: Path, feature: InputFeature, labels: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    try:
        with path.open("rb") as handle, np.load(handle) as file:
            return {label: file[f"{label}/{feature.name}"].astype(np.float64) for label in labels}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptFileError(
            f"'{path}' has no histograms of {feature.name} ({error}): remove it, and run InputHistogrammerTask again"
        ) from error


def _draw_feature(job: tuple[InputFeature, dict[str, NDArray[np.float64]]], directory: Path, look: Look) -> None:
    feature, histograms = job
    names = figure_names([feature], list(histograms), ylog=look.ylog, weighted=look.weighted)
    paths = {key: (directory / name).with_suffix("") for key, name in names.items()}

    def save(label: str, figure: Figure) -> None:
        path = paths[f"{feature.name}_{label}"]
        figures.save(figure, path.parent, path.name, ("png",))

    save(COMBINED, overlay_figure(feature, histograms, look))
    for number, label in enumerate(histograms):
        save(label, label_figure(feature, histograms, number, look))


def overlay_figure(feature: InputFeature, histograms: Mapping[str, NDArray[np.float64]], look: Look) -> Figure:
    """The shapes of all labels that have entries: counts over their sum, underflow and overflow included."""
    edges, filled = _edges(histograms), {label: each[0] for label, each in histograms.items() if each[0].any()}
    shapes = {label: counts / counts.sum() for label, counts in filled.items()}
    with figures.cms_style():
        figure, axes = figures.panel()
        for number, label in enumerate(histograms):
            if label in shapes:
                colour, line = figures.colour_and_line(number)
                inside = shapes[label][1:-1]
                shown = np.where(inside > 0, inside, np.nan) if look.ylog else inside
                axes.stairs(shown, edges, baseline=None, color=colour, ls=line, lw=2.5, label=label)
        _finish(axes, feature, f"fraction of {_noun(feature, look)}", _shown(edges, histograms))
        _limit(axes, list(shapes.values()), look, columns=2 if len(shapes) > 4 else 1)
    return figure


def label_figure(
    feature: InputFeature, histograms: Mapping[str, NDArray[np.float64]], number: int, look: Look
) -> Figure:
    """The histogram of the label `number`, in the range of the overlay."""
    label = list(histograms)[number]
    counts, edges = histograms[label][0], _edges(histograms)
    with figures.cms_style():
        figure, axes = figures.panel()
        colour, _ = figures.colour_and_line(number)
        if counts[1:-1].any():
            axes.stairs(counts[1:-1], edges, fill=True, color=colour, alpha=0.35, lw=0)
            axes.stairs(counts[1:-1], edges, color=colour, lw=2.5)
        axes.plot([], [], color=colour, lw=2.5, label=_caption(label, counts, look))
        _finish(axes, feature, _noun(feature, look), _shown(edges, histograms))
        _limit(axes, [counts], look, columns=1)
    return figure


def _noun(feature: InputFeature, look: Look) -> str:
    return f"{'weighted ' if look.weighted else ''}{_COUNTED.get(feature.group, 'candidates')}"


def _caption(label: str, counts: NDArray[np.float64], look: Look) -> str:
    total = counts.sum()
    if not total:
        return f"{label}: no entries"
    outside = [(counts[0], "below"), (counts[-1], "above")]
    lost = " and ".join(f"{100 * part / total:.2g} % {where}" for part, where in outside if part)
    text = f"{label}: {total:.{'4g' if look.weighted else '0f'}} entries"
    return f"{text}\n{lost} the range" if lost else text


def _edges(histograms: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    centres = next(iter(histograms.values()))[1]
    half = (centres[-1] - centres[0]) / (len(centres) - 1) / 2
    return np.linspace(centres[0] + half, centres[-1] - half, len(centres) - 1)


def _shown(edges: NDArray[np.float64], histograms: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The edges without empty bins on either side: the same for all labels of a feature."""
    filled = np.flatnonzero(np.sum([each[0][1:-1] for each in histograms.values()], axis=0))
    return edges[filled[0] : filled[-1] + 2] if len(filled) else edges


def _finish(axes: Axes, feature: InputFeature, noun: str, shown: NDArray[np.float64]) -> None:
    axes.set_xlim(shown[0], shown[-1])
    if len(shown) <= _FEW_BINS and np.allclose(np.diff(shown), 1.0):
        axes.set_xticks(np.rint(shown[:-1] + 0.5))
        axes.minorticks_off()
    axes.set_xlabel(feature.name)
    width = f"{shown[1] - shown[0]:.3g}"
    axes.set_ylabel(noun if width == "1" else f"{noun} / {width}")


def _limit(axes: Axes, histograms: Sequence[NDArray[np.float64]], look: Look, *, columns: int) -> None:
    """Limits in y with a strip for the legend above the highest bin."""
    handles, labels = axes.get_legend_handles_labels()
    rows = sum(label.count("\n") + 1 for label in labels)
    strip = 0.05 + 0.045 * -(-rows // columns)
    values = np.concatenate([each[1:-1] for each in histograms]) if histograms else np.zeros(1)
    values = values[values > 0] if (values > 0).any() else np.ones(1)
    high = float(values.max())
    if look.ylog:
        low = max(min(float(values.min()) / 2, high / 20), high * 10.0**-_DECADES)
        axes.set_yscale("log")
        axes.set_ylim(low, high * (2 * high / low) ** (strip / (1 - strip)))
    else:
        axes.set_ylim(0.0, high / (1 - strip))
    if handles:
        figures.fitting_legend(axes, "", columns)
