import csv
import json

import numpy as np
import pytest

from bhive_mltf.errors import DataError
from bhive_mltf.evaluation import figures
from bhive_mltf.evaluation.discriminators import softmax
from bhive_mltf.evaluation.working_points import MISTAG_RATES, make_working_points


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(figures, "roc_figure", lambda *args: None)
    monkeypatch.setattr(figures, "save", lambda figure, directory, stem: f"{stem}.png")


def read_csv(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def b_versus_light(predictions, order=(0, 1, 2, 3, 4, 5)):
    p = softmax(predictions.logits)[:, list(order)]
    b, light = p[:, :3].sum(axis=1), p[:, 4:].sum(axis=1)
    return b / (b + light)


def test_w42_working_points_are_stored_and_exact(tmp_path, fake, six, undrawn):
    predictions = fake(20_000, 6)
    summary = make_working_points(predictions, six, tmp_path)
    value = b_versus_light(predictions)
    is_b, is_light = predictions.truth < 3, predictions.truth > 3
    rows = read_csv(tmp_path / "working_points.csv")
    assert [float(row["wp"]) for row in rows] == list(MISTAG_RATES)
    entries = json.loads((tmp_path / "working_points.json").read_text())["working_points"]
    for row, entry, point in zip(rows, entries, summary.points["bvsl"], strict=True):
        threshold = float(row["threshold"])
        assert threshold == entry["threshold"] == point.threshold
        assert float(row["mistag"]) == (value[is_light] > threshold).mean() <= point.wp
        assert float(row["efficiency"]) == (value[is_b] > threshold).mean()
        assert point.wp - point.mistag < 1 / is_light.sum() + 1e-12, "the loosest cut"
        assert int(row["n_background"]) == is_light.sum()


def test_w42_what_jets_do_not_allow_has_a_reason_no_numbers(tmp_path, fake, six, undrawn):
    make_working_points(fake(600, 6), six, tmp_path)
    rows = read_csv(tmp_path / "working_points.csv")
    assert rows[-1]["threshold"] == rows[-1]["efficiency"] == ""
    assert "needs at least 1000" in rows[-1]["reason"]
    assert rows[0]["reason"] == ""
    entry = json.loads((tmp_path / "working_points.json").read_text())["working_points"][-1]
    assert entry["efficiency"] is None


def test_curve_has_upstreams_columns(tmp_path, fake, six, undrawn):
    predictions = fake(5000, 6)
    make_working_points(predictions, six, tmp_path)
    rows = read_csv(tmp_path / "wps_combined.csv")
    assert list(rows[0]) == ["mistag rate", "b jet efficiency", "thresholds"]
    value = b_versus_light(predictions)
    for row in rows[::97]:
        threshold = float(row["thresholds"])
        assert float(row["b jet efficiency"]) == pytest.approx((value[predictions.truth < 3] > threshold).mean())
        assert float(row["mistag rate"]) == pytest.approx((value[predictions.truth > 3] > threshold).mean())


def test_w39_hlt_working_points_are_those_of_b_by_name(tmp_path, fake, undrawn):
    predictions = fake(5000, 6)
    classes = ("taup", "g", "uds", "b", "taum", "c")
    point = make_working_points(predictions, classes, tmp_path).points["bvsl"][0]
    p = softmax(predictions.logits)
    value = p[:, 3] / (p[:, 3] + p[:, 1] + p[:, 2])
    light = np.isin(predictions.truth, [1, 2])
    assert point.mistag == (value[light] > point.threshold).mean()
    assert point.efficiency == (value[predictions.truth == 3] > point.threshold).mean()


def test_w39_jet_class_has_working_points_against_qcd(tmp_path, fake, jet_class, undrawn):
    predictions = fake(5000, 10)
    predictions = predictions.take(predictions.truth != 4)
    summary = make_working_points(predictions, jet_class, tmp_path)
    assert len(summary.points) == 8
    assert summary.left_out["H4qvsQCD"].startswith("0 signal")
    rows = read_csv(tmp_path / "wps_combined.csv")
    assert list(rows[0]) == ["mistag rate", "signal efficiency", "thresholds", "discriminator"]
    assert {row["discriminator"] for row in rows} == set(summary.points)


def test_c_tagger_without_light_jets_takes_what_there_is(tmp_path, fake, undrawn):
    assert list(make_working_points(fake(1000, 3), ("b", "c", "x"), tmp_path).points) == ["bvsc"]


def test_nothing_to_measure_is_refused(tmp_path, fake, six):
    predictions = fake(500, 6)
    with pytest.raises(DataError, match="No working point"):
        make_working_points(predictions.take(predictions.truth < 4), six, tmp_path / "wp")
    assert not (tmp_path / "wp").exists()
