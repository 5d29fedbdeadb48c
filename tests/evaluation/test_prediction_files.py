import json
from dataclasses import replace

import numpy as np
import pytest
import uproot

from bhive_mltf.errors import CorruptFileError, DataError
from bhive_mltf.evaluation import prediction_files
from bhive_mltf.evaluation.discriminators import softmax

FILES = {
    "prediction.npy", "truth.npy", "process.npy", "kinematics.npy", "jet_id.npy", "files.json", "inference_time.npy",
    "inference_metrics.npz", "output.root",
}  # fmt: skip


def test_what_is_written_is_read_back(tmp_path, fake, six, dataset):
    predictions = fake(250, 6)
    prediction_files.write(predictions, tmp_path, dataset(), six)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    back = prediction_files.read_predictions(tmp_path)
    for name in ("logits", "truth", "process", "kinematics", "jet_id"):
        np.testing.assert_array_equal(getattr(back, name), getattr(predictions, name))
        assert getattr(back, name).dtype == getattr(predictions, name).dtype
    assert (back.seconds, back.loss, back.accuracy) == (1.5, 0.5, 0.75)


def test_regression_is_kept_apart_from_the_logits(tmp_path, fake, six, dataset):
    names = ("pt", "pt_q16")
    predictions = fake(50, 6, regression=names)
    prediction_files.write(predictions, tmp_path, dataset(), six)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"regression.npy", "regression_target.npy"}
    assert np.load(tmp_path / "prediction.npy").shape == (50, 6)
    back = prediction_files.read_predictions(tmp_path)
    assert back.regression_names == names
    np.testing.assert_array_equal(back.regression, predictions.regression)
    np.testing.assert_array_equal(back.regression_target, predictions.regression_target)
    tree = uproot.open(tmp_path / "output.root")["tree"]
    np.testing.assert_array_equal(tree["reg_pt_q16"].array(library="np"), predictions.regression[:, 1])
    np.testing.assert_array_equal(tree["reg_pt_target"].array(library="np"), predictions.regression_target[:, 0])


def test_arrays_are_upstreams(tmp_path, fake, six, dataset):
    predictions = fake(50, 6)
    prediction_files.write(predictions, tmp_path, dataset(), six)
    assert np.load(tmp_path / "prediction.npy").dtype == np.float32
    assert np.load(tmp_path / "truth.npy").dtype == np.int64
    assert np.load(tmp_path / "process.npy").dtype == np.float32
    assert np.load(tmp_path / "kinematics.npy").shape == (50, 2)
    assert np.load(tmp_path / "inference_time.npy").shape == ()
    with np.load(tmp_path / "inference_metrics.npz") as metrics:
        assert {name: float(metrics[name]) for name in metrics} == {"time": 1.5, "loss": 0.5, "acc": 0.75}


def test_files_json_names_path_and_content(tmp_path, fake, six, dataset):
    prediction_files.write(fake(50, 6), tmp_path, dataset(), six)
    written = json.loads((tmp_path / "files.json").read_text())
    assert written["jet_id"] == "file and entry"
    assert written["files"]["2"] == {"path": "data/file_2.root", "content_id": "0000000000000002"}
    assert written["files"]["1"]["path"] == "data/file_1.root"


def test_a_set_without_ids_says_that_it_has_shards_and_rows(dataset):
    described = prediction_files.describe_files(dataset(jet_ids=False))
    assert described == {"jet_id": "shard and row", "files": {"0": {"path": "file_0.lz4", "content_id": "abc"}}}


def test_output_root_joins_with_the_arrays_by_file_and_entry(tmp_path, fake, six, dataset, monkeypatch):
    monkeypatch.setattr(prediction_files, "_ROOT_CHUNK", 70)  # several baskets
    predictions = fake(250, 6)
    prediction_files.write(predictions, tmp_path, dataset(), six)
    with uproot.open(tmp_path / "output.root") as file:
        tree = file["tree"].arrays(library="np")
    assert set(tree) == {
        "Jet_pt", "Jet_eta", "prob_isB", "prob_isBB", "prob_isLeptB", "prob_isC", "prob_isUDS", "prob_isG",
        "isB", "isBB", "isLeptB", "isC", "isUDS", "isG", "file", "entry",
    }  # fmt: skip
    row_of = {tuple(jet): row for row, jet in enumerate(predictions.jet_id)}
    rows = [row_of[jet] for jet in zip(tree["file"], tree["entry"], strict=True)]
    assert sorted(rows) == list(range(250))
    np.testing.assert_array_equal(tree["Jet_pt"], predictions.kinematics[rows, 0])
    np.testing.assert_array_equal(tree["Jet_eta"], predictions.kinematics[rows, 1])
    np.testing.assert_allclose(tree["prob_isLeptB"], softmax(predictions.logits)[rows, 2], rtol=1e-6)
    np.testing.assert_array_equal(tree["isUDS"] == 1, predictions.truth[rows] == 4)
    one_hot = np.stack([tree[name] for name in ("isB", "isBB", "isLeptB", "isC", "isUDS", "isG")])
    assert (one_hot.sum(axis=0) == 1).all()


def test_w39_old_branches_follow_the_names_of_the_classes(six):
    assert prediction_files.branch_names(six[::-1])[0][0] == "prob_isG"


def test_other_class_sets_have_branches_named_by_class(tmp_path, fake, jet_class, dataset):
    predictions = fake(40, 10)
    predictions = replace(predictions, truth=np.where(predictions.truth == 9, -1, predictions.truth))
    prediction_files.write(predictions, tmp_path, dataset(), jet_class)
    with uproot.open(tmp_path / "output.root") as file:
        tree = file["tree"].arrays(library="np")
    assert {"prob_label_Hbb", "label_Hbb", "file", "entry"} <= set(tree)
    assert not tree["label_Tbl"].any(), "a jet of no class has no truth"
    assert prediction_files.branch_names(("H->bb",)) == (["prob_H__bb"], ["H__bb"])


def test_prediction_npy_appears_last(tmp_path, fake, six, dataset, monkeypatch):
    (tmp_path / "prediction.npy").write_bytes(b"old")

    def fail(*args):
        raise RuntimeError("disk full")

    monkeypatch.setattr(prediction_files, "_write_root", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        prediction_files.write(fake(50, 6), tmp_path, dataset(), six)
    assert {path.name for path in tmp_path.iterdir()} == {"jet_id.npy", "files.json"}


def test_missing_and_broken_files_are_named(tmp_path, fake, six, dataset):
    with pytest.raises(DataError, match=r"prediction\.npy is missing"):
        prediction_files.read_predictions(tmp_path)
    prediction_files.write(fake(50, 6), tmp_path, dataset(), six)
    whole = (tmp_path / "truth.npy").read_bytes()
    (tmp_path / "truth.npy").write_bytes(whole[:-20])
    with pytest.raises(CorruptFileError, match=r"truth\.npy cannot be read"):
        prediction_files.read_predictions(tmp_path)
    np.save(tmp_path / "truth.npy", np.zeros(49, int))
    with pytest.raises(CorruptFileError, match="differ in length"):
        prediction_files.read_predictions(tmp_path)


def test_upstreams_directory_is_read(tmp_path, fake):
    predictions = fake(30, 6)
    np.save(tmp_path / "prediction.npy", predictions.logits)
    np.save(tmp_path / "truth.npy", predictions.truth.astype(np.int32))
    np.save(tmp_path / "process.npy", predictions.process.astype(np.float64))
    np.save(tmp_path / "kinematics.npy", predictions.kinematics)
    back = prediction_files.read_predictions(tmp_path)
    np.testing.assert_array_equal(back.process, predictions.process)
    assert (back.jet_id == -1).all()
    assert np.isnan(back.loss)
