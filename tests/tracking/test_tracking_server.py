import math
import os
import time

import mlflow
import pytest
from torch import nn

from bhive_mltf.tracking import attach, prepare, store
from bhive_mltf.tracking.connection import connect


@pytest.fixture
def client(server):
    return connect(server)


def test_credentials_stay_out_of_the_record(tmp_path, server):
    os.environ["MLFLOW_TRACKING_URI"] = server.replace("://", "://someone:secret@")
    record = prepare(tmp_path, data_path=tmp_path, run_name="t")
    assert record.tracking_uri == server
    assert "secret" not in (tmp_path / "run.json").read_text()
    assert store.with_credentials(record.tracking_uri) == os.environ["MLFLOW_TRACKING_URI"]
    os.environ["MLFLOW_TRACKING_URI"] = "http://someone:secret@elsewhere"
    assert store.with_credentials(record.tracking_uri) == server


def test_a_run_on_a_server(server, tmp_path, client, said):
    os.environ["MLFLOW_TRACKING_URI"] = server
    os.environ["MLFLOW_EXPERIMENT_NAME"] = "mine"
    prepare(tmp_path, data_path=tmp_path, run_name="t", params={"lr": 0.1, "long": "x" * 9000})
    run = attach(tmp_path)
    run.metrics({"loss": math.nan, "inf": math.inf, "auc": 0.9}, 0)
    run.dataset(name="v1", digest="ab", source="/data/v1", context="training", profile={"n_jets": 3})
    run.text("hello", "folder/hello.txt")
    run.model(nn.Linear(2, 1), step=0, metrics={"auc": 0.9})
    run.nested("model_performance_metrics").metrics({"Training Loss": 1.0}, 0)
    run.start_system_metrics(interval=0.1)
    time.sleep(0.3)
    run.finish("FINISHED")
    kept = client.get_run(run.record.run_id)
    assert kept.info.status == "FINISHED"
    assert client.get_experiment(run.record.experiment_id).name == "mine"
    assert math.isnan(kept.data.metrics["loss"])
    assert kept.data.metrics["auc"] == 0.9
    assert "system/cpu_utilization_percentage" in kept.data.metrics
    assert kept.inputs.dataset_inputs[0].dataset.name == "v1"
    assert [entry.path for entry in client.list_artifacts(run.record.run_id)] == ["folder", "params"]
    model_id = kept.outputs.model_outputs[0].model_id
    assert client.get_logged_model(model_id).metrics[0].value == 0.9
    assert client.get_logged_model(model_id).status == "READY"
    children = client.search_runs([run.record.experiment_id], f"tags.`mlflow.parentRunId` = '{run.record.run_id}'")
    assert [child.info.status for child in children] == ["FINISHED"]
    assert said() == []
    assert not (tmp_path / "mlflow.db").exists()
    assert mlflow.active_run() is None


@pytest.mark.long
def test_a_server_that_dies_and_comes_back(relay, tmp_path, client, said):
    os.environ["MLFLOW_TRACKING_URI"] = relay.address
    prepare(tmp_path, data_path=tmp_path, run_name="t")
    run = attach(tmp_path)
    run.metrics({"loss": 1.0}, 0)
    assert run.flush()
    relay.shut()
    slowest = 0.0
    for step in range(1, 300):
        start = time.monotonic()
        run.metrics({"loss": 1.0 / step}, step)
        slowest = max(slowest, time.monotonic() - start)
        time.sleep(0.005)
    assert slowest < 0.1
    assert not run.flush(0.5)
    relay.open()
    run.finish("FINISHED")
    assert len(client.get_metric_history(run.record.run_id, "loss")) == 300
    assert client.get_run(run.record.run_id).info.status == "FINISHED"
    assert len(said()) == 1
    assert "cannot take data now" in said()[0]


def test_a_server_killed_in_mid_run(relay, tmp_path, client, said):
    os.environ["MLFLOW_TRACKING_URI"] = relay.address
    prepare(tmp_path, data_path=tmp_path, run_name="t")
    run = attach(tmp_path)
    run.metrics({"loss": 1.0}, 0)
    assert run.flush()
    relay.shut()
    start = time.monotonic()
    run.metrics({"loss": 1.0}, 1)
    run.text("hello", "hello.txt")
    run.model(nn.Linear(1, 1))
    run.nested("child").metrics({"loss": 1.0}, 1)
    run.start_system_metrics(interval=10)
    assert time.monotonic() - start < 3.0
    start = time.monotonic()
    run.finish("FINISHED", timeout=3.0)
    assert time.monotonic() - start < 6.0
    assert client.get_run(run.record.run_id).info.status == "RUNNING"
    assert len(said()) == 2
    assert "not delivered" in said()[1]
    for lost in ("file: 1", "model: 1", "status: 2", "point: "):
        assert lost in said()[1]
