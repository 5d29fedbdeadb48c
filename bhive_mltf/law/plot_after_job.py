"""`python -m bhive_mltf.law.plot_after_job PLAN`: the figures of a training that ended, drawn by its job."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from bhive_mltf import compat, tracking
from bhive_mltf.training.plan import TrainingPlan


def draw(plan: TrainingPlan) -> None:
    """Loss and accuracy of the epochs, as figures beside the model and in the run; without matplotlib as numbers."""
    histories = {part: _history(plan.directory / f"{part}_metrics.npz") for part in ("training", "validation")}
    names: tuple[str, ...] = ()
    if compat.has("matplotlib"):
        from bhive_mltf.evaluation.figures import loss_curves

        names = loss_curves(histories["training"], histories["validation"], plan.directory)
    with tracking.attach(plan.directory, tracking=plan.tracking) as run:
        for name in names:
            run.artifact(plan.directory / name, "figures")
        run.json(histories, "histories.json")
        run.report()


def _history(path: Path) -> dict[str, list[float]]:
    with np.load(path) as arrays:
        return {name: arrays[name].tolist() for name in arrays.files}


def log_spectra(plan: TrainingPlan, dataset: Path) -> None:
    """The figure of the weighted spectra of a training set, into the run; drawn here for a set without it.

    An upstream set has none.
    """
    figure = dataset / "spectra.png"
    if not figure.exists():
        if not (dataset / "weighting.json").exists() or not compat.has("matplotlib"):
            return
        from bhive_mltf.evaluation.spectra import draw_spectra

        figure = plan.directory / draw_spectra(dataset, plan.directory)
    with tracking.attach(plan.directory) as run:
        run.artifact(figure, "figures")


if __name__ == "__main__":
    draw(TrainingPlan.read(sys.argv[1]))
