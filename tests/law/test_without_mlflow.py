"""Law commands where mlflow is not installed."""

import os

import pytest

from tests.helpers.commands import flat


@pytest.mark.long
def test_w30_tasks_index_and_train_without_mlflow(sandbox, btag_options, tmp_path):
    sandbox.forks = None  # they have imported it
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/sitecustomize.py").write_text("import sys\nsys.modules['mlflow'] = None\n")
    sandbox.environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}/blocked"
    sandbox.environment["LAW_HOME"] = str(tmp_path / "law")
    assert "written 15 task(s)" in sandbox.law("index").stdout
    options = [*flat({**btag_options, "--epochs": 1}), "--TrainingTask-loss-weighting", True]
    said = sandbox.run("TrainingTask", *options, "--ranks-per-node", 2)
    assert said.count("pip install 'bhive_mltf[tracking]'") == 1
    assert "Traceback" not in said
    (model,) = sandbox.data_path.rglob("best_model.pt")
    assert not (model.parent / "run.json").exists()
    assert not list(sandbox.data_path.glob("ml*"))
