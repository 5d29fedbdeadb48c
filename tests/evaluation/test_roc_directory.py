import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics

from bhive_mltf.errors import DataError
from bhive_mltf.evaluation import figures, roc
from bhive_mltf.evaluation.discriminators import discriminators, softmax
from bhive_mltf.evaluation.roc import make_roc_directory
from bhive_mltf.evaluation.selection import inside, process_masks, select_jets


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are drawn in tests/evaluation/test_figures.py; here only their names matter."""
    monkeypatch.setattr(figures, "roc_figure", lambda *args: None)
    monkeypatch.setattr(figures, "save", lambda figure, directory, stem: f"{stem}.png")


def read(directory):
    return json.loads((directory / "auc.json").read_text()), json.loads((directory / "left_out.json").read_text())


def test_files_and_areas_are_upstreams(tmp_path, fake, six, config, undrawn):
    predictions = fake(2000, 6)
    summary = make_roc_directory(predictions, six, config(), tmp_path / "roc")
    auc, left_out = read(tmp_path / "roc")
    assert auc == summary.auc
    assert list(auc) == ["all", "TT", "QCD"]
    assert left_out == {"jets": {}}
    for process, index in (("all", None), ("TT", 0), ("QCD", 1)):
        labels = np.load(tmp_path / "roc" / f"AUC_{process}_all.npy", allow_pickle=True).item()
        assert list(labels) == ["bvsl", "bvsc", "cvsb", "cvsl", "bvsall", "uds_vs_g"]
        mask = (predictions.truth != 3) & (index is None or predictions.process == index)
        p = softmax(predictions.logits)[mask]
        b, light = p[:, :3].sum(axis=1), p[:, 4:].sum(axis=1)
        truth = predictions.truth[mask] < 3
        assert labels["bvsl"] == pytest.approx(metrics.roc_auc_score(truth, b / (b + light)), abs=1e-12)
        assert labels["bvsl"] == auc[process]["bvsl"]["auc"]
        assert auc[process]["bvsl"]["n_signal"] == truth.sum()
        curve = np.load(tmp_path / "roc" / f"roc_{process}_bvsl.npy")
        assert curve.shape[0] == 3
        assert metrics.auc(curve[0], curve[1]) == pytest.approx(labels["bvsl"], abs=1e-4)
    assert summary.figures[0] == "roc_all_overview_flavour.png"
    assert "roc_QCD_bvsl.png" in summary.figures


def test_w41_areas_are_plain_json_with_uncertainties(tmp_path, fake, six, config, undrawn):
    make_roc_directory(fake(3000, 6), six, config(), tmp_path / "roc")
    entry = read(tmp_path / "roc")[0]["all"]["bvsl"]
    assert 0 < entry["error"] < 0.02
    assert list(entry["efficiency_at_mistag"]) == ["0.1", "0.01", "0.001"]
    at = entry["efficiency_at_mistag"]["0.01"]
    assert at["efficiency_low"] < at["efficiency"] < at["efficiency_up"]
    assert at["mistag"] <= 0.01


def test_w41_cuts_include_their_edges():
    cuts = SimpleNamespace(pt_min=30.0, pt_max=100.0, eta_min=-2.5, eta_max=None)
    kinematics = np.array([[30, 0], [100, -2.5], [29, 0], [101, 0], [50, -2.6], [50, 9]], np.float32)
    assert inside(kinematics, cuts).tolist() == [True, True, False, False, False, True]


def test_cuts_belong_to_their_process(fake, six, config):
    cuts = SimpleNamespace(pt_min=100.0, pt_max=None, eta_min=None, eta_max=None)
    jets = select_jets(fake(500, 6, n_processes=3), six)
    masks = process_masks(jets, config(cuts={"TT": cuts}))
    pt = jets.kinematics[:, 0]
    np.testing.assert_array_equal(masks["TT"], (jets.process == 0) & (pt >= 100))
    np.testing.assert_array_equal(masks["QCD"], jets.process == 1)
    # a process that the config does not name has no cuts
    np.testing.assert_array_equal(masks["all"], (jets.process != 0) | (pt >= 100))


def test_w39_jet_class_has_all_and_names_what_is_left_out(tmp_path, fake, jet_class, config, undrawn):
    predictions = fake(3000, 10)
    # each process holds one class, as JetClass files do
    predictions = replace(predictions, process=(predictions.truth == 0).astype(np.int64))
    processes = config(("ZToQQ", "ZJetsToNuNu"))
    summary = make_roc_directory(predictions, jet_class, processes, tmp_path / "roc")
    auc, left_out = read(tmp_path / "roc")
    assert set(auc["all"]) == {d.label for d in discriminators(jet_class)}
    assert len(auc["all"]) == 19
    assert "ZJetsToNuNu" not in auc
    assert left_out["ZJetsToNuNu"]["HbbvsQCD"].startswith("0 signal and ")
    assert summary.figures[:2] == ("roc_all_overview_vs_reference.png", "roc_all_overview_vs_rest.png")


def test_an_overview_has_all_of_its_family_in_any_order(tmp_path, fake, jet_class, config, undrawn, monkeypatch):
    drawn = []
    mixed = sorted(discriminators(jet_class), key=lambda one: one.label)
    assert len({one.family for one in mixed[:4]}) == 2
    monkeypatch.setattr(roc, "discriminators", lambda names: mixed)
    monkeypatch.setattr(figures, "roc_figure", lambda curves, caption: drawn.append(len(curves)))
    made = make_roc_directory(fake(3000, 10), jet_class, config(), tmp_path / "roc").figures
    assert [name for name in made if name.startswith("roc_all_overview")] == [
        "roc_all_overview_vs_rest.png",
        "roc_all_overview_vs_reference.png",
    ]
    assert drawn[:2] == [10, 9]


def test_an_empty_class_is_named_and_the_rest_is_drawn(tmp_path, fake, jet_class, config, undrawn):
    predictions = fake(2000, 10)
    predictions = predictions.take(np.isin(predictions.truth, [0, 6]))
    make_roc_directory(predictions, jet_class, config(("default",)), tmp_path / "roc")
    auc, left_out = read(tmp_path / "roc")
    assert set(auc["all"]) == {"ZqqvsQCD", "QCD_vs_rest", "Zqq_vs_rest"}
    assert left_out["all"]["HbbvsQCD"].startswith("0 signal")


def test_f07_the_table_names_curves_that_are_not_there(tmp_path, fake, six, config, undrawn):
    predictions = fake(300, 6)
    # light jets, and one that has b hadrons: an area without uncertainty
    truth = np.where(predictions.truth < 4, 4, predictions.truth)
    truth[0] = 0
    summary = make_roc_directory(replace(predictions, truth=truth), six, config(), tmp_path / "roc")
    assert summary.auc["all"]["bvsl"]["error"] is None
    lines = summary.table().splitlines()
    first = lines.index("  all")
    assert f"    {'bvsl':<22} {summary.auc['all']['bvsl']['auc']:.4f}" in lines
    assert "    no curve without signal and background jets: bvsc, cvsb, cvsl" in lines[first:]
    assert max(map(len, lines)) <= 72
    assert "jets" not in [line.strip() for line in lines]


@pytest.mark.usefixtures("undrawn")
def test_jets_without_class_or_output_are_left_out_and_counted(tmp_path, fake, six, config, caplog):
    predictions = fake(1000, 6)
    predictions.truth[:10] = -1
    predictions.logits[8:13] = np.nan
    make_roc_directory(predictions, six, config(), tmp_path / "roc")
    assert read(tmp_path / "roc")[1]["jets"] == {"in no class": 10, "not finite": 3}
    assert "10 of 1000 jets are left out" in caplog.text


def test_fewer_than_two_classes_with_jets_are_refused(tmp_path, fake, six, config):
    predictions = fake(500, 6)
    with pytest.raises(DataError, match="hold only c of b, bb"):
        make_roc_directory(predictions.take(predictions.truth == 3), six, config(), tmp_path / "roc")
    with pytest.raises(DataError, match="hold none of"):
        make_roc_directory(replace(predictions, truth=np.full(500, -1)), six, config(), tmp_path / "roc")
    assert not (tmp_path / "roc").exists()


def test_two_classes_that_no_discriminator_compares_are_refused(tmp_path, fake, six, config):
    predictions = fake(500, 6)
    with pytest.raises(DataError, match="no discriminator of"):
        make_roc_directory(predictions.take(predictions.truth < 2), six, config(), tmp_path / "roc")
    assert list(tmp_path.iterdir()) == []


def test_another_models_predictions_are_refused(tmp_path, fake, six, config):
    with pytest.raises(DataError, match="the model has 6 classes"):
        make_roc_directory(fake(100, 4), six, config(), tmp_path / "roc")


def test_w18_a_crash_leaves_no_directory(tmp_path, fake, six, config, monkeypatch):
    drawn = []

    def fail_late(figure, directory, stem):
        drawn.append(stem)
        assert directory.exists()
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return stem

    monkeypatch.setattr(figures, "roc_figure", lambda *args: None)
    monkeypatch.setattr(figures, "save", fail_late)
    with pytest.raises(KeyboardInterrupt):
        make_roc_directory(fake(500, 6), six, config(), tmp_path / "roc")
    assert len(drawn) == 4
    assert list(tmp_path.iterdir()) == []


def test_names_of_processes_are_safe_and_all_stays_free(tmp_path, fake, six, config, undrawn):
    make_roc_directory(fake(1000, 6), six, config(("all", "H/ZZ")), tmp_path / "roc")
    assert list(read(tmp_path / "roc")[0]) == ["all_processes", "all", "H/ZZ"]
    assert (tmp_path / "roc" / "roc_H_ZZ_bvsl.npy").exists()
