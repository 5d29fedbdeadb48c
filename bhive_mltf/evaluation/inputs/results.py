"""The directory of input histograms and their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bhive_mltf.config import Config
from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.evaluation.inputs import histograms as library
from bhive_mltf.evaluation.inputs.features import InputFeature, count_workers
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.files.records import Record, is_current


@dataclass(frozen=True)
class InputsRequest:
    """Histograms of the inputs of a training set, or figures of them.

    directory : of the results; weighted and unweighted ones, logarithmic or not, share it and its record.
    sources : directories of what they are made from, by name.
    n_workers : processes; -1: one per core but one.
    """

    directory: Path
    sources: Mapping[str, str]
    n_bins: int
    n_workers: int
    weighted: bool


def fill(request: InputsRequest, dataset: Path, config: Config, path: Path) -> tuple[int, int]:
    """Fill the histograms of a training set into `path`; their number, and that of the jets."""
    with DirectoryLock(request.directory, wait_s=None):
        _begin(request, "input_histogram*.npz")
        # an upstream set without a manifest that lies in a read-only place gets it beside the histograms
        jets = open_dataset(dataset, config, request.directory / "dataset")
        histograms = library.input_histograms(
            jets, n_bins=request.n_bins, n_workers=request.n_workers, weighted=request.weighted
        )
        library.write_histograms(histograms, path)
    return len(histograms), len(jets)


def draw(
    request: InputsRequest, path: Path, features: Sequence[InputFeature], labels: Sequence[str], *, ylog: bool
) -> None:
    """Draw the histograms in `path`."""
    from bhive_mltf.evaluation.inputs.figures import Look, draw_inputs

    with DirectoryLock(request.directory, wait_s=None):
        _begin(request, "*/*.png")
        draw_inputs(
            path,
            features,
            labels,
            request.directory,
            look=Look(ylog=ylog, weighted=request.weighted),
            n_workers=count_workers(request.n_workers),
        )


def _begin(request: InputsRequest, pattern: str) -> None:
    """Write the directory's record; what was made from older sources is removed before."""
    directory = request.directory
    if Record.read(directory) is not None and is_current(directory, request.sources):
        return
    for path in directory.glob(pattern):
        path.unlink()
    Record.new({"Nbins": request.n_bins}, request.sources).write(directory)
