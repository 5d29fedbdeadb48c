import os
import socket
import subprocess
import sys
import time
from urllib.parse import unquote

import mlflow
import pytest

from bhive_mltf import compat
from bhive_mltf.tracking import NullRun, RunRecord, attach, connection, prepare, view_command

needs_database = pytest.mark.skipif(not compat.has_sqlalchemy(), reason="mlflow-skinny has no database")


def test_a_new_run(tmp_path, data_path, client, said):
    record = prepare(
        tmp_path / "training",
        data_path=data_path,
        run_name="t1",
        params={"lr": 0.1, "long": "x" * 7000},
        tags={"colour": "red"},
    )
    assert record == RunRecord.read(tmp_path / "training")
    assert (record.external, record.parent_run_id) == (False, None)
    run = client.get_run(record.run_id)
    assert (run.info.status, run.info.run_name) == ("RUNNING", "t1")
    assert run.data.params["lr"] == "0.1"
    assert run.data.params["long"].startswith("xxx")
    assert "params/long.txt" in run.data.params["long"]
    assert run.data.tags["colour"] == "red"
    assert run.data.tags["bhive_mltf.directory"] == str(tmp_path / "training")
    experiment = client.get_experiment(record.experiment_id)
    assert experiment.name == "bhive_mltf"
    assert unquote(experiment.artifact_location) == f"file://{data_path}/mlartifacts"
    assert (data_path / "mlartifacts" / record.run_id / "artifacts/params/long.txt").read_text() == "x" * 7000
    assert mlflow.active_run() is None
    assert said() == []


def test_scheduled_then_begun(tmp_path, data_path, client):
    record = prepare(tmp_path, data_path=data_path, run_name="t", status="SCHEDULED")
    assert client.get_run(record.run_id).info.status == "SCHEDULED"
    run = attach(tmp_path)
    run.begin()
    assert run.flush()
    assert client.get_run(record.run_id).info.status == "RUNNING"
    run.finish()
    assert client.get_run(record.run_id).info.status == "RUNNING"


def test_a_training_goes_on_in_its_run(tmp_path, data_path, client, said):
    first = prepare(tmp_path, data_path=data_path, run_name="t", params={"lr": 0.1})
    attach(tmp_path).finish("FAILED")
    assert client.get_run(first.run_id).info.status == "FAILED"
    second = prepare(tmp_path, data_path=data_path, run_name="t", params={"lr": 0.2, "epochs": 3})
    assert second == first
    run = client.get_run(first.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"lr": "0.1", "epochs": "3"}
    assert [w for w in said() if "lr ('0.1' stays, now '0.2')" in w] == said()
    assert len(client.search_runs([first.experiment_id])) == 1


@pytest.mark.parametrize("loss", ["deleted", "store gone", "unreadable record"])
def test_a_lost_run_is_replaced(tmp_path, data_path, client, said, loss):
    first = prepare(tmp_path / "t", data_path=data_path, run_name="t")
    if loss == "deleted":
        client.delete_run(first.run_id)
    elif loss == "store gone":
        RunRecord(f"sqlite:///{tmp_path}/moved/mlflow.db", "1", "f" * 32).write(tmp_path / "t")
    else:
        (tmp_path / "t/run.json").write_text('{"run_id": ')
        assert isinstance(attach(tmp_path / "t"), NullRun)
    second = prepare(tmp_path / "t", data_path=data_path, run_name="t")
    assert second.run_id != first.run_id
    assert client.get_run(second.run_id).info.status == "RUNNING"
    assert len(said()) == (2 if loss == "unreadable record" else 1)
    assert "a new run is made" in said()[-1]
    assert not (tmp_path / "moved").exists()


def test_a_run_from_outside_has_one_owner_and_keeps_its_status(tmp_path, data_path, client):
    outside = client.create_run(client.create_experiment("mine"), run_name="project").info.run_id
    os.environ["MLFLOW_RUN_ID"] = outside
    first = prepare(tmp_path / "one", data_path=data_path, run_name="one")
    assert (first.run_id, first.external, first.parent_run_id) == (outside, True, None)
    second = prepare(tmp_path / "two", data_path=data_path, run_name="two")
    assert second.run_id != outside
    assert (second.external, second.parent_run_id) == (False, outside)
    assert client.get_run(second.run_id).data.tags["mlflow.parentRunId"] == outside
    assert prepare(tmp_path / "one", data_path=data_path, run_name="one") == first
    assert prepare(tmp_path / "two", data_path=data_path, run_name="two") == second
    for name in ("one", "two"):
        with attach(tmp_path / name) as run:
            run.metrics({"loss": 1.0}, 0)
            run.finish("FAILED")
    assert client.get_run(outside).info.status == "RUNNING"
    assert client.get_run(outside).data.metrics == {"loss": 1.0}
    assert client.get_run(outside).data.tags["bhive_mltf.directory"] == str(tmp_path / "one")
    assert client.get_run(second.run_id).info.status == "FAILED"
    client.set_terminated(outside, "KILLED")
    prepare(tmp_path / "one", data_path=data_path, run_name="one")
    assert client.get_run(outside).info.status == "KILLED"


def test_an_active_run_is_used(tmp_path, data_path):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{data_path}/mlflow.db")
    try:
        with mlflow.start_run() as active:
            record = prepare(tmp_path, data_path=tmp_path, run_name="t")
            attach(tmp_path).finish("FINISHED")
            assert mlflow.active_run().info.status == "RUNNING"
    finally:
        mlflow.set_tracking_uri(before)
    assert (record.run_id, record.external) == (active.info.run_id, True)
    assert record.tracking_uri == f"sqlite:///{data_path}/mlflow.db"


def test_an_unknown_run_from_outside(tmp_path, data_path, said):
    os.environ["MLFLOW_RUN_ID"] = "0" * 32
    record = prepare(tmp_path, data_path=data_path, run_name="t")
    assert record.external is False
    assert len(said()) == 1
    assert "0" * 32 in said()[0]


def test_tracking_off(tmp_path, data_path):
    assert prepare(tmp_path, data_path=data_path, run_name="t", tracking=False) is None
    assert list(tmp_path.glob("*.json")) == []
    prepare(tmp_path, data_path=data_path, run_name="t")
    assert type(attach(tmp_path, tracking=False)) is NullRun
    assert type(attach(data_path)) is NullRun


def test_a_dead_server_from_the_beginning(tmp_path, data_path, said):
    os.environ["MLFLOW_TRACKING_URI"] = "http://someone:secret@127.0.0.1:1"
    start = time.monotonic()
    record = prepare(tmp_path, data_path=data_path, run_name="t")
    assert time.monotonic() - start < 15
    assert len(said()) == 1
    assert "http://127.0.0.1:1 cannot be used" in said()[0]
    assert "secret" not in " ".join(said())
    assert record == RunRecord.read(tmp_path)
    assert (record.run_id, record.pending["run_name"]) == ("", "t")
    assert "secret" not in (tmp_path / "run.json").read_text()
    assert "tracking sync" in view_command(record)
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_a_known_run_whose_server_is_silent_is_kept(tmp_path, data_path, said):
    record = RunRecord("http://127.0.0.1:1", "1", "a" * 32)
    record.write(tmp_path)
    os.environ["MLFLOW_TRACKING_URI"] = record.tracking_uri
    assert prepare(tmp_path, data_path=data_path, run_name="t") == record
    assert len(said()) == 1


@needs_database
def test_a_deleted_experiment_and_a_bad_store(tmp_path, data_path, client, said, monkeypatch):
    monkeypatch.setattr(connection, "_TRIES", 2)
    client.delete_experiment(client.create_experiment("old"))
    os.environ["MLFLOW_EXPERIMENT_NAME"] = "old"
    assert prepare(tmp_path, data_path=data_path, run_name="t") is None
    assert "MLFLOW_EXPERIMENT_NAME" in said()[0]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/mlflow.db").write_text("this is no database, and it is long enough to be seen as none" * 20)
    start = time.monotonic()
    assert prepare(tmp_path, data_path=tmp_path / "bad", run_name="t").pending
    assert time.monotonic() - start < 15
    assert len(said()) == 2


@pytest.mark.long
def test_two_processes_make_the_store_at_once(tmp_path):
    code = (
        "import sys; from bhive_mltf.tracking import prepare;"
        "print(prepare(sys.argv[1], data_path=sys.argv[2], run_name='t').experiment_id)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / name, tmp_path / "new store"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [output for output, _ in outputs] == ["1\n", "1\n"]
    assert [error for _, error in outputs] == ["", ""]  # nor does MLflow say anything
    assert (tmp_path / "new store/mlflow.db").exists()


def test_the_command_that_opens_the_page(tmp_path):
    record = RunRecord("sqlite:////a b/mlflow.db", "1", "abc")
    command = view_command(record, port=7000)
    assert command.startswith("mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db' --port 7000")
    assert view_command(RunRecord("https://host/", "1", "abc")) == "https://host/#/experiments/1/runs/abc"


def test_a_silent_server_costs_a_bounded_time(tmp_path, data_path, said):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "1"  # the user's own limit wins; ours would be 5 s
        start = time.monotonic()
        assert prepare(tmp_path, data_path=data_path, run_name="t").pending
        assert 1 < time.monotonic() - start < 5
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    assert len(said()) == 1


@needs_database
def test_a_relative_store_is_the_same_from_everywhere(tmp_path, data_path, monkeypatch):
    monkeypatch.chdir(data_path)
    os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
    record = prepare(tmp_path, data_path=data_path, run_name="t")
    assert record.tracking_uri == f"sqlite:///{data_path}/mlflow.db"


def test_w30_without_mlflow_all_imports_and_tracking_is_off(tmp_path):
    RunRecord("sqlite:////nowhere/mlflow.db", "1", "abc").write(tmp_path)
    code = f"""
import sys
import logging
sys.modules["mlflow"] = None
logging.basicConfig()
import bhive_mltf.tracking as tracking
assert "torch" not in sys.modules and "psutil" not in sys.modules
assert tracking.prepare({str(tmp_path / "new")!r}, data_path={str(tmp_path)!r}, run_name="t") is None
run = tracking.attach({str(tmp_path)!r})
assert type(run) is tracking.NullRun
run.metrics({{"loss": 1.0}}, 0)
run.nested("x").finish("FINISHED")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all("pip install 'bhive_mltf[tracking]'" in line for line in lines)
