"""A saved MLflow model as a logged model of the run, and as a version of a registered one."""

import json

import pytest

from bhive_mltf.tracking import attach, logged_model, prepare
from bhive_mltf.tracking.connection import connect
from bhive_mltf.tracking.journal import folder_of


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {python_function: {loader_module: x}}\nmodel_uuid: abc\n")
    (folder / "model.onnx").write_bytes(b"weights")
    return folder


def log(data_path, saved, **values):
    record = prepare(data_path / "training", data_path=data_path, run_name="t")
    with attach(data_path / "training") as run:
        run.saved_model(saved, "onnx_best_model", metrics={"difference": 1e-7}, tags={"weights": "best"}, **values)
    return record.run_id


def test_a_registered_model_has_a_version_and_an_alias(data_path, client, saved):
    run_id = log(data_path, saved, register="tagger", alias="champion")
    log(data_path, saved, register="tagger", alias="champion")
    (first, second) = sorted(client.search_model_versions("name='tagger'"), key=lambda found: int(found.version))
    assert (first.run_id, second.run_id) == (run_id, run_id)
    assert client.get_model_version_by_alias("tagger", "champion").version == second.version
    (model, _) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert model.tags["weights"] == "best"
    assert {metric.key: metric.value for metric in model.metrics} == {"difference": 1e-7}
    assert not list(folder_of(data_path / "training").glob("models/*"))
    assert (saved / "model.onnx").exists()


def test_a_server_registers_too(server, tmp_path, saved, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    run_id = log(tmp_path, saved, register="tagger of a server", alias="champion")
    found = connect(server).get_model_version_by_alias("tagger of a server", "champion")
    assert found.run_id == run_id


def test_sent_twice_it_is_one_version(data_path, client, saved):
    prepare(data_path / "training", data_path=data_path, run_name="t")
    run_id = json.loads((data_path / "training" / "run.json").read_text())["run_id"]
    folder = data_path / "kept"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "MLmodel").write_text((saved / "MLmodel").read_text())
    record = {"name": "m", "step": 0, "metrics": {}, "params": {}, "tags": {}, "register": "tagger"}
    experiment = client.get_run(run_id).info.experiment_id
    for _ in range(2):
        logged_model.send(client, folder, experiment, run_id, record)
    assert len(client.search_model_versions("name='tagger'")) == 1
    assert len(client.search_logged_models([experiment])) == 1


def test_an_old_mlflow_gets_plain_artifacts(data_path, client, saved, monkeypatch, caplog):
    monkeypatch.setattr(logged_model.compat, "has_logged_models", lambda: False)
    monkeypatch.setattr(logged_model, "_noted", False)
    run_id = log(data_path, saved)
    assert [entry.path for entry in client.list_artifacts(run_id, "onnx_best_model")] == [
        "onnx_best_model/MLmodel",
        "onnx_best_model/model.onnx",
    ]
    assert caplog.text.count("this MLflow has no logged models") == 1
