"""The figure of a study: validation loss of each trial, and the best one so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from bhive_mltf.evaluation import figures

_STEM = "history"


def draw(trials: Sequence[Mapping[str, Any]], directory: Path) -> str:
    """Write `history.{png,pdf}`; the name of the PNG file.

    trials : `number`, `state`, `validation_loss` (of complete ones) and `losses` by epoch of each.
    """
    done = [(one["number"], one["validation_loss"]) for one in trials if one["validation_loss"] is not None]
    pruned = [
        (one["number"], min(one["losses"].values())) for one in trials if one["state"] == "PRUNED" and one["losses"]
    ]
    with figures.cms_style():
        figure, axes = figures.panel(energy_tev=None)
        if done:
            numbers, losses = np.array(done).T
            axes.plot(numbers, losses, "o", color=figures.COLOURS[0], label="complete")
            axes.step(numbers, np.minimum.accumulate(losses), "-", where="post", color=figures.COLOURS[1], label="best")
        if pruned:
            axes.plot(*np.array(pruned).T, "x", color=figures.COLOURS[4], label="pruned")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("trial")
        axes.set_ylabel("validation loss")
        if done or pruned:
            axes.legend(loc="best")
    return figures.save(figure, directory, _STEM)
