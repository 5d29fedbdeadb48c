"""A ROC curve in the terminal, from Braille dots: a look at a training without opening a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.evaluation.discriminators import discriminators, probabilities
from bhive_mltf.evaluation.statistics import Curve, area, roc_curve

if TYPE_CHECKING:
    from rich.text import Text

_COLOURS = ("cyan", "red", "yellow", "magenta")
# bits of the eight dots of a Braille character, [row, column]
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_LOWEST = -4  # decades of mistag rate


def terminal_roc(
    outputs: NDArray[np.floating],
    truth: NDArray[np.int64],
    classes: Iterable[str],
    *,
    width: int = 60,
    height: int = 16,
) -> Text:
    """ROC curves of the first four discriminators that have jets; mistag rate 1e-4 to 1 over efficiency 0 to 1.

    outputs : float [N,C]; truth : int64 [N], -1 for jets in no class, which are left out.
    """
    known = (truth >= 0) & np.isfinite(outputs).all(axis=1)
    values, truth = probabilities(outputs[known]), truth[known]
    drawn: list[tuple[str, Curve]] = []
    for discriminator in discriminators(classes):
        signal, background = discriminator.split(values, truth)
        if len(signal) and len(background) and len(drawn) < len(_COLOURS):
            legend = f"{discriminator.label}  AUC {area(signal, background).auc:.4f}"
            drawn.append((legend, roc_curve(signal, background)))
    return _render(drawn, width, height)


def _render(drawn: Sequence[tuple[str, Curve]], width: int, height: int) -> Text:
    from rich.text import Text

    if not drawn:
        return Text("no ROC curve: no discriminator has signal and background jets")
    cells = [_cells(curve, width, height) for _, curve in drawn]
    text = Text()
    for row in range(height):
        power = _LOWEST * row / height
        text.append(f"{f'1e{power:.0f}' if row % (height // 4) == 0 else '':>5} ┤")
        for column in range(width):
            owner = max(range(len(cells)), key=lambda i: bool(cells[i][row, column]))
            text.append(chr(0x2800 + int(cells[owner][row, column])), style=_COLOURS[owner])
        text.append("\n")
    text.append(" " * 6 + "└" + "─" * width + "\n")
    text.append(" " * 7 + "0" + "efficiency".center(width - 2) + "1\n")
    for (legend, _), colour in zip(drawn, _COLOURS, strict=False):
        text.append(f"{'':7}── {legend}\n", style=colour)
    return text


def _cells(curve: Curve, width: int, height: int) -> NDArray[np.int64]:
    """Braille bits [height,width] of the curve."""
    shown = curve.mistag > 0
    columns, rows = 2 * width, 4 * height
    x = np.linspace(0.0, 1.0, 4 * columns)
    x = x[x >= curve.efficiency[shown].min()]
    y = np.interp(x, curve.efficiency[shown], np.log10(curve.mistag[shown]))
    x, y = x[y >= _LOWEST], y[y >= _LOWEST]
    column = np.minimum((x * columns).astype(np.int64), columns - 1)
    row = np.clip((y / _LOWEST * rows).astype(np.int64), 0, rows - 1)
    cells = np.zeros((height, width), np.int64)
    np.bitwise_or.at(cells, (row // 4, column // 2), _DOTS[row % 4, column % 2])
    return cells
