import math
import sys
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest

from bhive_mltf.evaluation import figures
from bhive_mltf.evaluation.roc import make_roc_directory
from bhive_mltf.evaluation.statistics import Area
from bhive_mltf.evaluation.working_points import make_working_points

PNG, PDF = b"\x89PNG", b"%PDF"


def assert_figures(directory, stems):
    for stem in stems:
        assert (directory / f"{stem}.png").read_bytes().startswith(PNG)
        assert (directory / f"{stem}.pdf").read_bytes().startswith(PDF)


def legend_fits(figure):
    """Whether the legend lies inside the axes, above a mistag rate of one."""
    axes = figure.axes[0]
    figure.canvas.draw()
    legend, frame = axes.get_legend().get_window_extent(), axes.get_window_extent()
    top_of_curves = axes.transData.transform((0.5, 1.0))[1]
    return frame.x0 <= legend.x0 and legend.x1 <= frame.x1 and legend.y1 <= frame.y1 and legend.y0 >= top_of_curves


@pytest.fixture
def drawn(monkeypatch):
    """All figures that a call draws."""
    made = []
    original = figures.roc_figure
    monkeypatch.setattr(figures, "roc_figure", lambda *args: made.append(original(*args)) or made[-1])
    return made


@pytest.mark.long
def test_roc_figures_with_long_names_and_few_jets(tmp_path, fake, config, drawn):
    classes = ("QCD", "a_rather_long_class_name", "Hcc", "H $4q$", "W", "Z", "top", "tau")
    cuts = SimpleNamespace(pt_min=30.0, pt_max=1000.0, eta_min=-2.5, eta_max=2.5)
    predictions = fake(300, 8)
    summary = make_roc_directory(
        predictions.take(predictions.truth < 2), classes, config(("TT",), {"TT": cuts}), tmp_path / "roc"
    )
    assert_figures(tmp_path / "roc", [name.removesuffix(".png") for name in summary.figures])
    assert all(legend_fits(figure) for figure in drawn)


def test_an_overview_of_ten_classes_keeps_its_legend_inside(tmp_path, fake, jet_class, drawn):
    make_working_points(fake(2000, 10), jet_class, tmp_path)
    assert_figures(tmp_path, ["working_point"])
    assert legend_fits(drawn[0])


def test_working_points_of_one_discriminator_are_in_the_legend(tmp_path, fake, six, drawn):
    make_working_points(fake(1000, 6), six, tmp_path)
    texts = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert texts[0].startswith("b vs light: AUC = 0.")
    assert texts[1].startswith("mis-id. 0.1: efficiency (")
    assert not any("0.001:" in text for text in texts), "not reached with so few jets"
    assert legend_fits(drawn[0])


def test_perfect_separation_is_drawn(tmp_path, fake, six):
    summary = make_working_points(fake(200, 6, separation=60.0), six, tmp_path)
    assert summary.points["bvsl"][0].efficiency == 1.0
    assert_figures(tmp_path, ["working_point"])


@pytest.mark.parametrize("n_epochs", [1, 3, 80])
def test_loss_curves(tmp_path, n_epochs):
    history = {"loss": np.linspace(2, 1, n_epochs), "acc": np.linspace(0.1, 0.6, n_epochs)}
    shorter = {name: values[:-1] for name, values in history.items()}
    assert figures.loss_curves(history, shorter, tmp_path) == ("loss.png", "acc.png")
    assert_figures(tmp_path, ["loss", "acc"])


def test_loss_curves_without_history_draw_nothing(tmp_path):
    assert figures.loss_curves({"loss": []}, {}, tmp_path) == ()
    assert figures.loss_curves({"loss": [math.nan, 1.0]}, {}, tmp_path) == ("loss.png",)
    assert list(tmp_path.glob("acc*")) == []


def test_the_same_figure_is_the_same_pdf(tmp_path):
    for name in ("first", "second"):
        figures.loss_curves({"loss": [2.0, 1.0]}, {}, tmp_path / name)
    assert (tmp_path / "first" / "loss.pdf").read_bytes() == (tmp_path / "second" / "loss.pdf").read_bytes()


def test_figures_leave_matplotlib_as_it_was(tmp_path):
    before = dict(mpl.rcParams)
    figures.loss_curves({"loss": [2.0, 1.0]}, {}, tmp_path)
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_without_mplhep_figures_are_plain(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mplhep", None)
    figures.loss_curves({"loss": [2.0, 1.0]}, {}, tmp_path)
    assert_figures(tmp_path, ["loss"])


def test_texts():
    assert figures.auc_text(Area(0.93456, 0.0021)) == r"0.9346 $\pm$ 0.0021"
    assert figures.auc_text(Area(0.93456, 0.04)) == r"0.935 $\pm$ 0.040"
    assert figures.auc_text(Area(0.5, math.nan)) == "0.500"
    cuts = SimpleNamespace(pt_min=30.0, pt_max=None, eta_min=-2.5, eta_max=2.5)
    assert figures.caption("TT", cuts) == r"TT, $p_T$ > 30 GeV, |$\eta$| < 2.5"
    assert figures.caption("all") == "all processes"
