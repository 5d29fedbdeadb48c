"""Filling and drawing the histograms of the input features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.files.records import Record, is_current

if TYPE_CHECKING:
    from bhive_mltf.law.tasks.input_plotter import HistogramPlotterTask, InputHistogrammerTask


def fill(task: InputHistogrammerTask, directory: Path) -> None:
    """Fill the histograms of the task's training set."""
    from bhive_mltf.data.dataset import open_dataset
    from bhive_mltf.evaluation.inputs import histograms as library

    with DirectoryLock(directory, wait_s=None):
        _begin(task, directory, "input_histogram*.npz")
        # an upstream set without a manifest that lies in a read-only place gets it beside the histograms
        dataset = open_dataset(task.dataset().local_path(), task.load_config(), directory / "dataset")
        histograms = library.input_histograms(
            dataset,
            n_bins=task.Nbins,
            n_workers=task.n_workers,
            weighted=task.weight_histo,
        )
        library.write_histograms(histograms, Path(task.output().path))
    task.say(f"{len(histograms)} histograms of {len(dataset)} jets: {task.output().path}")


def draw(task: HistogramPlotterTask, directory: Path) -> None:
    """Draw the histograms that were filled."""
    from bhive_mltf.evaluation.inputs.features import count_workers
    from bhive_mltf.evaluation.inputs.figures import Look, draw_inputs

    with DirectoryLock(directory, wait_s=None):
        _begin(task, directory, "*/*.png")
        draw_inputs(
            Path(task.histograms().output().path),
            task.features(),
            task.labels(),
            directory,
            look=Look(ylog=task.ylog, weighted=task.weight_histo),
            n_workers=count_workers(task.n_workers),
        )
    task.say(f"{len(task.output())} figures; those of all labels together: {directory}/<feature>/all*.png")


def _begin(task: InputHistogrammerTask, directory: Path, pattern: str) -> None:
    """Write the directory's record; what was made from older sources is removed before.

    Weighted and unweighted results, logarithmic or not, share a directory and its record.
    """
    if Record.read(directory) is not None and is_current(directory, task.sources()):
        return
    for path in directory.glob(pattern):
        path.unlink()
    Record.new({"Nbins": task.Nbins}, task.sources()).write(directory)
