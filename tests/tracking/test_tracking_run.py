import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow.models import Model
from torch import nn

from bhive_mltf.tracking import RunRecord, attach, deliver, journal, prepare
from bhive_mltf.tracking.logged_model import ModelArrays
from tests.helpers.waiting import wait_for


@pytest.fixture
def training(tmp_path, data_path):
    prepare(tmp_path / "training", data_path=data_path, run_name="t", params={"lr": 0.1})
    return tmp_path / "training"


def history(client, run_id, key):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def test_metrics(training, client, said):
    run = attach(training)
    for step in range(2500):
        run.metrics({"loss": 1 / (step + 1)}, step)
    run.metrics({"loss": 7.0}, 3)  # the first wins
    run.metrics({"bad": math.nan, "worse": math.inf, "odd name!": torch.tensor(2.0), "no": "text"}, 1, timestamp=5.25)
    run.finish("FINISHED")
    run.finish("FAILED")
    kept = client.get_run(run.record.run_id)
    assert kept.info.status == "FINISHED"
    assert history(client, kept.info.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(2500)]
    assert math.isnan(kept.data.metrics["bad"])
    assert kept.data.metrics["worse"] > 1e308
    assert client.get_metric_history(kept.info.run_id, "odd name_")[0].timestamp == 5250
    assert len(said()) == 1
    assert "'no' is no number" in said()[0]


def test_params_tags_and_files(training, client, tmp_path, said):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/roc.txt").write_text("roc")
    with attach(training) as run:
        run.params({"lr": 0.3, "model": {"layers": 2}, "text": "y" * 6500})
        run.params({"text": "y" * 6500})
        run.tags({"test_is_training_set": True})
        run.text("a: 1", "config/config.yml")
        run.json({"auc": 0.9, "path": Path("x")}, "auc.json")
        run.artifact(tmp_path / "figures/roc.txt", "roc")
        run.artifact(tmp_path / "figures", "all")
        run.artifact(tmp_path / "missing")
        run.json({1: {2}, (3, 4): 5}, "no.json")
    kept = client.get_run(run.record.run_id)
    assert kept.info.status == "RUNNING"
    assert kept.data.params["lr"] == "0.1"
    assert kept.data.params["model"] == '{"layers": 2}'
    assert kept.data.tags["test_is_training_set"] == "True"
    folder = Path(mlflow.artifacts.download_artifacts(run_id=kept.info.run_id, tracking_uri=run.record.tracking_uri))
    assert (folder / "config/config.yml").read_text() == "a: 1"
    assert json.loads((folder / "auc.json").read_text()) == {"auc": 0.9, "path": "x"}
    assert (folder / "roc/roc.txt").read_text() == (folder / "all/roc.txt").read_text() == "roc"
    assert (folder / "params/text.txt").read_text() == "y" * 6500
    warnings = " ".join(said())
    assert len(said()) == 4
    for part in ("json cannot be tracked", "lr ('0.1' stays, now '0.3')", "/missing", "not delivered: file: 1"):
        assert part in warnings


def test_dataset_inputs(training, client):
    for _ in range(2):  # once more when the training goes on
        with attach(training) as run:
            for context in ("training", "validation"):
                run.dataset(
                    name="v1",
                    digest="ab" * 32,
                    source="/data/v1",
                    context=context,
                    profile={"n_jets": 1000},
                    columns={"jet_pt": "float"},
                )
            run.dataset(name="test", digest="cd", source="root://host//file.root", context="test")
    inputs = client.get_run(run.record.run_id).inputs.dataset_inputs
    seen = {entry.tags[0].value: entry.dataset for entry in inputs}
    assert len(inputs) == 3
    assert seen["training"].name == "v1"
    assert seen["validation"].name == "v1 (validation)"
    assert seen["training"].digest == ("ab" * 32)[:36]
    assert json.loads(seen["training"].profile) == {"n_jets": 1000, "digest": "ab" * 32}
    assert json.loads(seen["training"].schema) == {"mlflow_colspec": [{"name": "jet_pt", "type": "float"}]}
    assert json.loads(seen["test"].source) == {"uri": "root://host//file.root"}


def test_model_round_trip(training, client, tmp_path):
    (tmp_path / "classes.json").write_text("[]")
    run = attach(training)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    wrapped = torch.compile(net, backend="eager")
    example = np.arange(6, dtype=np.float32).reshape(2, 3)
    for step, loss in ((1, 0.5), (2, 0.3), (3, 0.4)):
        run.metrics({"Validation Loss": loss}, step)
        run.model(
            wrapped,
            "best.model",
            step=step,
            metrics={"Validation Loss": loss},
            files=[tmp_path / "classes.json"],
            arrays=ModelArrays({"x": (-1, 3)}, {"logits": (-1, 2)}, {"x": example}),
        )
        with torch.no_grad():
            net[0].weight.add_(1.0)  # the training goes on
    run.finish("FINISHED")
    record = run.record
    models = client.search_logged_models(
        [record.experiment_id], order_by=[{"field_name": "metrics.Validation Loss", "ascending": True}]
    )
    assert [model.metrics[0].value for model in models] == [0.3, 0.4, 0.5]
    assert all(model.source_run_id == record.run_id and model.status == "READY" for model in models)
    assert models[0].name == "best_model"
    assert sorted(output.step for output in client.get_run(record.run_id).outputs.model_outputs) == [1, 2, 3]
    # one point in the run, although it belongs to the run and to the model
    assert history(client, record.run_id, "Validation Loss") == [(1, 0.5), (2, 0.3), (3, 0.4)]
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(record.tracking_uri)
    try:
        uris = [f"models:/{model.model_id}" for model in models]
        loaded = [mlflow.pytorch.load_model(uri) for uri in uris]
        folder = Path(mlflow.artifacts.download_artifacts(uris[0]))
    finally:
        mlflow.set_tracking_uri(before)
    assert not loaded[0].training
    assert type(loaded[0]) is nn.Sequential
    # best, then third, then first: each as it was when it was logged
    torch.testing.assert_close(loaded[0][0].weight + 1, loaded[1][0].weight)
    torch.testing.assert_close(loaded[2][0].weight + 1, loaded[0][0].weight)
    assert (folder / "extra_files/classes.json").read_text() == "[]"
    assert f"torch=={torch.__version__.partition('+')[0]}" in (folder / "requirements.txt").read_text().split()
    assert f"model_id: {models[0].model_id}" in (folder / "MLmodel").read_text()
    described = Model.load(folder)
    (given,), (made,) = described.signature.inputs.inputs, described.signature.outputs.inputs
    assert (given.name, given.type, given.shape) == ("x", np.dtype("float32"), (-1, 3))
    assert (made.name, made.shape) == ("logits", (-1, 2))
    np.testing.assert_array_equal(described.load_input_example(folder)["x"], example)


def test_a_model_that_cannot_be_pickled(training, client, said):
    class Holder(nn.Linear):
        def __reduce__(self):
            raise TypeError("no")

    with attach(training) as run:
        run.model(Holder(1, 1))
    assert said() == ["model cannot be tracked (TypeError: no); it is left out"]
    assert client.search_logged_models([run.record.experiment_id]) == []


def test_nested_run(training, client):
    for epoch in range(2):  # found again when the training goes on
        run = attach(training)
        run.nested("model_performance_metrics").metrics({"Training Loss": 1.0 - epoch}, epoch)
        run.finish("FINISHED")
        prepare(training, data_path=training, run_name="t")
    record = run.record
    (child,) = client.search_runs([record.experiment_id], f"tags.`mlflow.parentRunId` = '{record.run_id}'")
    assert child.info.run_name == "model_performance_metrics"
    assert child.info.status == "FINISHED"
    assert history(client, child.info.run_id, "Training Loss") == [(0, 1.0), (1, 0.0)]


def wait_for_step(directory, step, seconds=30):
    """Until system metrics of `node0` have gone beyond this step."""
    wait_for(lambda: journal.Journal(directory).next_step("system/node0/") > step, seconds, f"step {step}")


@pytest.fixture
def two_gpus(monkeypatch):
    """A driver with two GPUs, of which the second does not tell its power; the calls that MLflow makes."""
    import pynvml

    def power(handle):
        if handle == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 250_000

    for name, answer in {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=3e9 * (handle + 1), total=12e9),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=40 + handle),
        "nvmlDeviceGetPowerUsage": power,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 500_000,
    }.items():
        monkeypatch.setattr(pynvml, name, answer)


def test_gpu_metrics_of_the_driver_reach_the_run(training, client, two_gpus, said):
    with attach(training) as run:
        run.start_system_metrics("node0", interval=0.05)
        wait_for_step(training, 0)
    last = client.get_run(run.record.run_id).data.metrics
    found = {key.removeprefix("system/node0/"): value for key, value in last.items() if "/gpu_" in key}
    assert found == {
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_memory_usage_megabytes": 3000.0,
        "gpu_0_utilization_percentage": 40.0,
        "gpu_0_power_usage_watts": 250.0,
        "gpu_0_power_usage_percentage": 50.0,
        "gpu_1_memory_usage_percentage": 50.0,
        "gpu_1_memory_usage_megabytes": 6000.0,
        "gpu_1_utilization_percentage": 41.0,
    }
    assert said() == []


def test_system_metrics(training, client):
    start = time.monotonic()
    for _ in range(2):
        run = attach(training)
        first = journal.Journal(training).next_step("system/node0/")
        run.start_system_metrics("node0", interval=0.1)
        wait_for_step(training, first + 2)
        run.finish("FINISHED")
    points = history(client, run.record.run_id, "system/node0/cpu_utilization_percentage")
    # no more than the interval allows, and one at each end
    assert 4 <= len(points) <= (time.monotonic() - start) / 0.1 + 4
    assert [step for step, _ in points] == list(range(len(points)))


def test_system_metrics_that_fail(training, said, monkeypatch):
    from bhive_mltf.tracking.system.sampler import Sampler

    monkeypatch.setattr(Sampler, "_point", lambda *_: 1 / 0)
    with attach(training) as run:
        run.start_system_metrics(interval=0.1)
        time.sleep(0.1)
    assert len(said()) == 1
    assert "system metrics stop here" in said()[0]


def test_one_bad_point_does_not_take_others_along(training, client, said):
    run = attach(training)
    run.metrics({f"m{i}": float(i) for i in range(50)}, 1)
    run._journal.metrics({"a name that // MLflow refuses!": 1.0, "good": 2.0}, 1, 1)
    run.metrics({f"n{i}": float(i) for i in range(50)}, 1)
    run.finish("FINISHED")
    assert len(client.get_run(run.record.run_id).data.metrics) == 101
    assert len(said()) == 2
    assert "refused a point 'a name that // MLflow refuses!'" in said()[0]
    assert "point: 1" in said()[1]


def test_a_store_that_is_gone_or_locked(tmp_path, said):
    (tmp_path / "file").write_text("")
    RunRecord(f"sqlite:///{tmp_path}/file/mlflow.db", "1", "abc").write(tmp_path)
    run = attach(tmp_path)
    run.metrics({"loss": 1.0}, 0)
    start = time.monotonic()
    run.finish("FINISHED", timeout=1.0)
    assert time.monotonic() - start < 2.5
    assert len(said()) == 2
    assert "point: 1, status: 1" in said()[1]


@given(st.text())
def test_any_text_becomes_a_name_that_mlflow_takes(text):
    from mlflow.utils.validation import _validate_metric_name

    name = deliver.metric_name(text)
    _validate_metric_name(name)
    assert deliver.metric_name(name) == name


@pytest.mark.parametrize("name", ["Training Loss", "system/node0/cpu", "auc_b:l", "a.b-c"])
def test_good_names_stay(name):
    assert deliver.metric_name(name) == name
