import json

import numpy as np
import pytest

from bhive_mltf.data.weighting.grid import Grid
from bhive_mltf.data.weighting.methods import WEIGHTINGS, weigh
from bhive_mltf.errors import CorruptFileError
from bhive_mltf.evaluation.spectra import draw_spectra, spectra_figure

GRID = Grid((10.0, 30.0, 60.0, 120.0, 500.0), (-2.5, 0.0, 2.51))


def make(labels, weighting="reference"):
    histogram = np.random.default_rng(1).poisson(200, (len(labels), 4, 2))
    histogram[-1] = 0
    return histogram, weigh(histogram, weighting, grid=GRID, labels=labels, reference=labels[0])


@pytest.mark.parametrize(
    "weighting", [WEIGHTINGS[0], *(pytest.param(w, marks=pytest.mark.long) for w in WEIGHTINGS[1:])]
)
def test_spectra_are_drawn_from_the_directory(tmp_path, weighting):
    histogram, weights = make(("b", "c", "light", "none"), weighting)
    np.save(tmp_path / "histogram.npy", histogram.astype(np.float32))
    weights.report.write(tmp_path, weights.weights)
    assert draw_spectra(tmp_path, tmp_path / "elsewhere") == "spectra.png"
    assert (tmp_path / "elsewhere" / "spectra.png").exists()
    assert not (tmp_path / "spectra.png").exists()
    assert draw_spectra(tmp_path) == "spectra.png"
    assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "spectra.pdf").read_bytes().startswith(b"%PDF")


def test_panels_hold_densities_before_and_after(tmp_path):
    labels = ("b", "c", "light", "none")
    histogram, weights = make(labels)
    figure = spectra_figure(histogram, weights.weights, weights.report)
    before_pt, after_pt, before_eta, after_eta = figure.axes
    np.testing.assert_allclose(before_pt.patches[1].get_data().values, histogram[1].sum(axis=1) / np.diff(GRID.pt))
    drawn = (histogram * weights.weights)[2].sum(axis=0) / np.diff(GRID.eta)
    np.testing.assert_allclose(after_eta.patches[2].get_data().values, drawn)
    assert before_pt.get_ylim() == after_pt.get_ylim()
    assert before_eta.get_ylim() == after_eta.get_ylim()
    assert figure.legends[0].get_texts()[0].get_text() == "b (reference)"
    assert before_pt.get_xscale() == "log"


def test_many_long_labels_keep_the_legend_inside():
    labels = [f"a_rather_long_truth_label_{i}" for i in range(14)]
    histogram, weights = make(labels)
    figure = spectra_figure(histogram, weights.weights, weights.report)
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.width
    assert len(figure.legends) == 1
    assert legend.y0 > figure.axes[0].get_window_extent().y1


def test_narrow_bins_in_pt_have_a_linear_axis():
    grid = Grid((500.0, 600.0, 1000.0), (-2.5, 2.5))
    histogram = np.full((2, 2, 1), 30)
    weights = weigh(histogram, "reference", grid=grid, labels=("a", "b"), reference="a")
    assert spectra_figure(histogram, weights.weights, weights.report).axes[0].get_xscale() == "linear"


def test_a_set_without_a_report(tmp_path):
    with pytest.raises(CorruptFileError, match="weighting.json"):
        draw_spectra(tmp_path)
    (tmp_path / "weighting.json").write_text(json.dumps({"weights": [], "labels": 3}))
    with pytest.raises(CorruptFileError, match="weighting.json"):
        draw_spectra(tmp_path)
