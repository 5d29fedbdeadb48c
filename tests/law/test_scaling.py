"""ScalingTask through `law run`."""

import json

import pytest

from tests.helpers.commands import flat


@pytest.mark.long
def test_scaling_of_deepjet_with_one_and_two_ranks(sandbox, btag_options):
    options = {**btag_options, "--world-sizes": "1,2", "--steps": 2, "--warm-up-steps": 1, "--batch-size": 32}
    output = sandbox.run("ScalingTask", *flat(options))
    (path,) = sandbox.data_path.glob("ScalingTask/**/ranks_1_2/steps_2/scaling.json")
    rows = json.loads(path.read_text())["rows"]
    assert [(row["kind"], row["ranks"], row["batch_size"]) for row in rows] == [
        ("weak", 1, 32), ("weak", 2, 64), ("strong", 1, 32), ("strong", 2, 32),
    ]  # fmt: skip
    assert all(row["jets_per_s"] > 0 and row["forward"] > 0 and row["backward"] > 0 for row in rows)
    assert rows[1]["communication"] > 0
    assert all(0 < row["byte_share"] < 2 and 0 < row["flop_share"] < 1 for row in rows)
    assert "of the byte limit" in output
    assert all((path.parent / f"scaling.{suffix}").stat().st_size for suffix in ("csv", "png", "pdf"))
    assert "ms per" in output
    assert "cores of" in output

    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{sandbox.data_path}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"
    speedups = client.get_metric_history(run.info.run_id, "weak/speedup")
    assert [(point.step, point.value) for point in speedups] == [(1, 1.0), (2, pytest.approx(rows[1]["speedup"]))]
    assert {file.path for file in client.list_artifacts(run.info.run_id, "scaling")} == {
        f"scaling/scaling.{suffix}" for suffix in ("csv", "json", "png", "pdf")
    }
