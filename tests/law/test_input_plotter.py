"""Weights and input histograms through `law run`."""

import json

import numpy as np
import pytest
import yaml

from bhive_mltf.data.weighting.methods import WEIGHTINGS
from bhive_mltf.testing import jets
from tests.helpers.building import SMALL
from tests.helpers.commands import Sandbox, flat

FEATURES = ("jet_pt", "jet_eta", "npv", "Cpfcan_logrel")
# four features, since each takes a figure per label
CONFIG = {
    name: value for name, value in SMALL.items() if name not in ("cpf_candidates", "n_vtx_candidates", "vtx_features")
}
LABELS = ("isB", "isC", "isUD")
SPECTRA = ("weighting.json", "spectra.png", "spectra.pdf")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A small set of toy jets."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "small.yml").write_text(yaml.safe_dump(CONFIG))
    paths = [jets.write_btag(folder / f"{name}.root", 400, 3 + n, process=name) for n, name in enumerate(("TT", "QCD"))]
    (folder / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    return {"--config": folder / "small.yml", "--dataset-version": "v1", "--filelist": folder / "list.txt"}


@pytest.fixture(scope="module")
def plotted(tmp_path_factory, law_home, options):
    """HistogramPlotterTask done."""
    sandbox = Sandbox(tmp_path_factory.mktemp("inputs"), law_home)
    sandbox.before = sandbox.run("HistogramPlotterTask", *flat(options), "--print-status", -1)
    sandbox.output = sandbox.run("HistogramPlotterTask", *flat(options), "--n-workers", 1)
    return sandbox


def folder_of(sandbox, task, *parts):
    return sandbox.data_path.joinpath(task, "small", "v1", *parts)


def test_the_status_before_anything_ran(plotted):
    assert "absent" in plotted.before
    assert "Traceback" not in plotted.before


def test_w10_the_weights_are_reported(plotted):
    directory = folder_of(plotted, "DatasetConstructorTask")
    assert all((directory / name).stat().st_size for name in SPECTRA)
    lines = [line.split() for line in plotted.output.splitlines()]
    assert "weighting reference, reference isB" in plotted.output
    counts = np.load(directory / "histogram.npy").sum(axis=(1, 2))
    for label, jets_of_label in zip(LABELS, counts, strict=True):
        assert any(line[:2] == [label, f"{jets_of_label:.0f}"] for line in lines)
    assert json.loads((directory / "parameters.json").read_text())["parameters"]["weighting"] == "reference"


def test_histograms_and_figures_have_upstreams_names(plotted):
    with np.load(folder_of(plotted, "InputHistogrammerTask") / "input_histogram.npz") as file:
        assert set(file.files) == {f"{label}/{name}" for label in LABELS for name in FEATURES}
        assert all(file[name].shape == (2, 52) for name in file.files)
        counts = np.load(folder_of(plotted, "DatasetConstructorTask") / "histogram.npy").sum(axis=(1, 2))
        assert [file[f"{label}/npv"][0].sum() for label in LABELS] == counts.tolist()
    folder = folder_of(plotted, "HistogramPlotterTask")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert found == {f"{name}/{label}_ylog.png" for name in FEATURES for label in (*LABELS, "all")}


def test_the_same_command_again_does_nothing(plotted, options):
    assert "1 complete ones were encountered" in plotted.run("HistogramPlotterTask", *flat(options))


def test_weighted_histograms_lie_beside_the_others(plotted, options):
    plotted.run("InputHistogrammerTask", *flat(options), "--weight-histo", True)
    folder = folder_of(plotted, "InputHistogrammerTask")
    with np.load(folder / "input_histogram.npz") as plain, np.load(folder / "input_histogram_weight.npz") as weighted:
        assert plain.files == weighted.files
        report = json.loads((folder_of(plotted, "DatasetConstructorTask") / "weighting.json").read_text())
        for each in report["labels"]:
            assert weighted[f"{each['label']}/jet_pt"][0].sum() == pytest.approx(each["drawn"], rel=1e-4)


def test_w17_other_bins_have_a_folder_of_their_own(plotted, options):
    plotted.run("InputHistogrammerTask", *flat(options), "--Nbins", 10)
    with np.load(folder_of(plotted, "InputHistogrammerTask", "Nbins_10") / "input_histogram.npz") as file:
        assert file["isB/jet_pt"].shape == (2, 12)
    with np.load(folder_of(plotted, "InputHistogrammerTask") / "input_histogram.npz") as file:
        assert file["isB/jet_pt"].shape == (2, 52)


def test_w18_figures_of_an_older_set_count_as_missing(plotted, options):
    path = folder_of(plotted, "DatasetConstructorTask") / "parameters.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "generation": "another"}))
    try:
        status = plotted.law("run", "HistogramPlotterTask", *flat(options), "--print-status", 1).stdout
    finally:
        path.write_text(before)
    assert "existent" not in status
    assert status.count("absent") == 1 + len(FEATURES) * 4


@pytest.mark.parametrize(("option", "value"), [("--Nbins", 0), ("--n-workers", 0)])
def test_parameters_out_of_range_are_refused_at_once(plotted, options, option, value):
    done = plotted.law("run", "HistogramPlotterTask", *flat({**options, "--dataset-version": "v2"}), option, value)
    assert done.returncode == 50
    assert f"error: {option} {value}: " in done.stdout
    assert "Traceback" not in done.stdout


def test_w10_balanced_weights_are_a_set_of_their_own(plotted, options):
    output = plotted.run("DatasetConstructorTask", *flat(options), "--weighting", "balanced")
    assert "weighting balanced, reference isB" in output
    directory = folder_of(plotted, "DatasetConstructorTask", "weighting_balanced")
    report = json.loads((directory / "weighting.json").read_text())
    drawn = [each["drawn"] for each in report["labels"]]
    assert drawn == pytest.approx([drawn[0]] * 3)
    assert all((directory / name).stat().st_size for name in SPECTRA)
    assert json.loads((directory / "manifest.json").read_text())["weighting"] == "balanced"
    assert json.loads((directory / "parameters.json").read_text())["parameters"]["weighting"] == "balanced"


def test_w10_unknown_weightings_are_refused(plotted, options):
    done = plotted.law("run", "DatasetConstructorTask", *flat(options), "--weighting", "flat")
    assert done.returncode != 0
    assert all(f"'{name}'" in done.stdout for name in WEIGHTINGS), done.stdout
