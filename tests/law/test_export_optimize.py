"""ExportTask and OptimizeTask through `law run`."""

import json

import pytest

from tests.helpers.commands import flat

pytestmark = pytest.mark.long


def test_a_trained_model_becomes_onnx(sandbox, btag_options, test_options):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    mlflow = pytest.importorskip("mlflow")
    options = {**btag_options, "--epochs": 1, **test_options, "--register": "tagger", "--alias": "champion"}
    assert "largest difference from the model" in sandbox.run("ExportTask", *flat(options))
    (compared_in,) = sandbox.data_path.glob("ExportTask/**/comparison.json")
    path = compared_in.with_name("model.onnx")
    assert path.exists()
    compared = json.loads((path.parent / "comparison.json").read_text())
    assert compared["n_jets"] > 100
    assert compared["largest"] <= 1e-4
    assert len(compared["lengths"]) > 5
    description = json.loads((path.parent / "preprocess.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{sandbox.data_path}/mlflow.db")
    version = client.get_model_version_by_alias("tagger", "champion")
    assert version.run_id == description["training"]["run_id"]
    # a new training is exported anew
    assert "Task" in sandbox.run("ExportTask", *flat(options), "--print-status", "0")
    last = sandbox.run("ExportTask", *flat(options), "--weights", "last")
    assert "weights_last" in last
    refused = sandbox.law("run", "ExportTask", *flat({**btag_options, **test_options, "--alias": "a"}))
    assert refused.returncode != 0
    assert "add --register NAME" in refused.stdout


def test_a_study_of_trainings(sandbox, btag_options):
    pytest.importorskip("optuna")
    mlflow = pytest.importorskip("mlflow")
    space = sandbox.folder / "space.yml"
    space.write_text(
        "learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}\nmodel_kwargs.dropout: {low: 0.0, high: 0.2}\n"
    )
    options = {**btag_options, "--epochs": 1, "--study": "s", "--space": space, "--n-trials": 2, "--n-workers": 1}
    output = sandbox.run("OptimizeTask", *flat(options))
    assert "study s: 2 complete; best is trial" in output
    (best,) = sandbox.data_path.glob("OptimizeTask/**/best.json")
    found = json.loads(best.read_text())
    assert found["states"] == {"COMPLETE": 2}
    assert (best.parent / "history.png").stat().st_size > 1000
    client = mlflow.MlflowClient(f"sqlite:///{sandbox.data_path}/mlflow.db")
    parent = json.loads((best.parent / "run.json").read_text())["run_id"]
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert sorted(child.info.status for child in children) == ["FINISHED", "FINISHED"]
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(parent).data.metrics["Validation Loss"] == found["best"]["validation_loss"]
    trainings = list(sandbox.data_path.glob("TrainingTask/**/t1_s_000[01]/**/best_model.pt"))
    assert len(trainings) == 2
    assert "study s: 3 complete" in sandbox.run("OptimizeTask", *flat({**options, "--n-trials": 3}))
    space.write_text("no_parameter: {low: 0, high: 1}\n")
    refused = sandbox.law("run", "OptimizeTask", *flat({**options, "--study": "other"}))
    assert refused.returncode != 0
    assert "there is no parameter `no_parameter`" in refused.stdout
