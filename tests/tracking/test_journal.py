"""What a training tells MLflow, kept beside it first."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from bhive_mltf import compat
from bhive_mltf.cli import main
from bhive_mltf.cli.tracking import ended_as
from bhive_mltf.files.lock import DirectoryLock, is_held
from bhive_mltf.tracking import RunRecord, attach, close, close_abandoned, journal, prepare
from bhive_mltf.tracking.connection import connect
from bhive_mltf.tracking.journal import Journal


def lines(directory):
    return [record for record in journal.records(directory) if "kind" in record]


def history(client, run_id, key):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def test_the_first_value_wins_over_processes_and_torn_lines(tmp_path):
    first = Journal(tmp_path)
    first.metrics({"loss": 0.1, "odd": math.nan}, 1, 5)
    first.metrics({"loss": math.inf}, 2, 6)
    first.close()
    with first.path.open("ab") as file:
        file.write(b'{"kind": "metrics", "values": {"loss": 3.0}, "step": 3, "ti')  # a kill in mid-line
    second = Journal(tmp_path)
    second.metrics({"loss": 9.0, "new": 1.0}, 1, 7)
    second.metrics({"loss": 9.0}, 3, 8)
    second.metrics({"loss": 9.0}, 3, 9)
    second.metrics({"loss": 4.0}, 3, 9, child="c")
    second.metrics({"loss": 5.0}, 3, 9, of="another test set")
    assert [(r["values"], r["step"]) for r in lines(tmp_path)] == [
        ({"loss": 0.1, "odd": "nan"}, 1),
        ({"loss": "inf"}, 2),
        ({"new": 1.0}, 1),
        ({"loss": 9.0}, 3),
        ({"loss": 4.0}, 3),
        ({"loss": 5.0}, 3),
    ]
    assert second.find("loss", 2) == (math.inf, 6)
    assert second.find("loss", 7) is None
    assert second.next_step("lo") == 4
    assert len(journal.files(tmp_path)) == 2
    second.close()


def test_a_line_after_one_that_a_full_disk_cut_is_whole(tmp_path, monkeypatch):
    own = Journal(tmp_path)
    own.append("tags", values={"a": "1"})
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:10]))
        with pytest.raises(OSError, match="written whole"):
            own.append("tags", values={"b": "2"})
    own.append("tags", values={"c": "3"})
    own.close()
    assert [record["values"] for record in lines(tmp_path)] == [{"a": "1"}, {"c": "3"}]


def test_a_run_ends_though_the_disk_is_full(tmp_path, data_path, client, said, monkeypatch):
    """Neither the status nor what was sent can be noted beside the training."""
    run_id = prepare(tmp_path, data_path=data_path, run_name="t").run_id
    run = attach(tmp_path)
    run.begin()
    run.metrics({"loss": 1.0}, 1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal, "mark_sent", full)
    monkeypatch.setattr(Journal, "append", full)
    start = time.monotonic()
    run.tags({"failure": "DiskError: full"})
    run.finish("FAILED")
    assert time.monotonic() - start < 10
    kept = client.get_run(run_id)
    assert (kept.info.status, kept.data.tags["failure"]) == ("FAILED", "DiskError: full")
    assert history(client, run_id, "loss") == [(1, 1.0)]
    assert said() == []


def test_a_run_ends_though_a_file_of_it_finds_no_room(tmp_path, data_path, client, said, monkeypatch):
    """The artifacts lie on the full disk too: the status does not wait behind them."""
    run_id = prepare(tmp_path, data_path=data_path, run_name="t").run_id
    run = attach(tmp_path)
    run.begin()
    run.flush()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mlflow.MlflowClient.log_artifact", full)
    run.json({"a": 1}, "a.json")
    monkeypatch.setattr(journal, "mark_sent", full)
    monkeypatch.setattr(Journal, "append", full)
    run.finish("FAILED", timeout=3)
    assert client.get_run(run_id).info.status == "FAILED"
    assert not any("could not be told that it ended" in line for line in said())


def test_the_end_of_a_process_that_began_first_is_the_newest_status(tmp_path, data_path, client):
    """Two commands work on one run, and the one that began later is killed."""
    run_id = prepare(tmp_path, data_path=data_path, run_name="t").run_id
    first, second = attach(tmp_path), attach(tmp_path)
    for run in (first, second):
        run.begin()
        run.flush()
    assert journal.last_status(tmp_path) == "RUNNING"
    time.sleep(0.01)
    first.finish("FINISHED")
    assert journal.last_status(tmp_path) == "FINISHED"
    assert client.get_run(run_id).info.status == "FINISHED"
    second.finish()
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_run_that_can_be_told_nothing_says_so(tmp_path, data_path, said, monkeypatch):
    prepare(tmp_path, data_path=data_path, run_name="t")
    (tmp_path / "journal").write_text("in the way")
    run = attach(tmp_path)

    def away(*_):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr("bhive_mltf.tracking.deliver.send", away)
    run.finish("FAILED", timeout=1)
    assert any("could not be told that it ended" in line for line in said())


def test_a_disk_that_takes_no_journal_costs_one_warning(tmp_path, data_path, client, said):
    run_id = prepare(tmp_path, data_path=data_path, run_name="t").run_id
    (tmp_path / "journal").write_text("in the way")
    run = attach(tmp_path)
    for step in range(3):
        run.metrics({"loss": 1.0}, step)
    run.finish("FINISHED", timeout=1)
    assert [line for line in said() if "metrics cannot be tracked" in line] == said()
    assert len(said()) == 1
    assert client.get_run(run_id).info.status == "FINISHED"


RANK = """
import sys, time
from bhive_mltf.tracking import attach
run = attach(sys.argv[1])
run.begin()
for step in range(int(sys.argv[2]), 10**6):
    run.metrics({"train/loss": 1 / (step + 1), "train/jets_per_s": time.time()}, step)
    print(step, flush=True)
    time.sleep(0.01)
"""


def killed_at(directory, first, last):
    """A training from step `first` on, killed by SIGKILL after step `last`."""
    process = subprocess.Popen([sys.executable, "-c", RANK, str(directory), str(first)], stdout=subprocess.PIPE)
    for line in process.stdout:
        if int(line) >= last:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_w19_killed_and_resumed_there_is_one_value_per_step(tmp_path, data_path, client, said):
    directory = tmp_path / "training"
    run_id = prepare(directory, data_path=data_path, run_name="t").run_id
    killed_at(directory, 0, 150)
    prepare(directory, data_path=data_path, run_name="t")
    with attach(directory) as run:  # from the checkpoint of step 60 on
        run.begin()
        for step in range(60, 200):
            run.metrics({"train/loss": 1 / (step + 1), "train/jets_per_s": -1.0}, step)
        run.model(nn.Linear(1, 1), step=100, metrics={"train/loss": 7.0})
        run.finish("FINISHED")
    assert history(client, run_id, "train/loss") == [(step, 1 / (step + 1)) for step in range(200)]
    speeds = dict(history(client, run_id, "train/jets_per_s"))
    assert (len(speeds), speeds[100] > 0, speeds[199]) == (200, True, -1.0)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(said()) == (0 if compat.has_logged_models() else 1)


def test_a_killed_command_is_closed_by_the_sync_command(tmp_path, data_path, client, capsys):
    directory = data_path / "TrainingTask/t"
    run_id = prepare(directory, data_path=data_path, run_name="t").run_id
    killed_at(directory, 0, 3)
    assert client.get_run(run_id).info.status == "RUNNING"
    with DirectoryLock(directory):
        assert is_held(directory)
        assert not close_abandoned(directory, "KILLED")  # somebody trains
    assert main(["tracking", "sync", str(data_path)]) == 0
    assert "closed as KILLED; delivered" in capsys.readouterr().out
    closed = client.get_run(run_id)
    assert closed.info.status == "KILLED"
    assert closed.info.end_time <= time.time() * 1000
    assert [step for step, _ in history(client, run_id, "train/loss")][:4] == [0, 1, 2, 3]
    assert main(["tracking", "sync", str(data_path)]) == 0
    assert capsys.readouterr().out == ""


def test_a_closed_run_keeps_the_reason_of_its_owner(tmp_path, data_path, client):
    run_id = prepare(tmp_path, data_path=data_path, run_name="t").run_id
    with attach(tmp_path) as owner:
        owner.tags({"failure": "ValueError: bad"})
    for since, expected in ((time.time() - 60, "ValueError: bad"), (time.time() + 60, "the node failed")):
        close(tmp_path, "FAILED", "the node failed", since)
        run = client.get_run(run_id)
        assert (run.info.status, run.data.tags["failure"]) == ("FAILED", expected)


@pytest.mark.parametrize(
    ("plan", "last"),
    [
        ({"epochs": 2, "extend_training": 0, "of_a_later_version": 1}, 1),
        ({"epochs": 2, "extend_training": 3}, 4),
        ({"epochs": 0, "use_iterations": True, "total_iterations": 7, "extend_training": 2}, 9),
    ],
)
def test_w19_a_killed_run_is_closed_by_its_plan_s_last_model(tmp_path, plan, last):
    assert ended_as(tmp_path).status == "KILLED"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / f"model_{last - 1}.pt").touch()
    assert ended_as(tmp_path).status == "KILLED"
    (tmp_path / f"model_{last}.pt").touch()
    assert ended_as(tmp_path).status == "FINISHED"
    (tmp_path / "plan.json").write_text("[]")
    assert ended_as(tmp_path).status == "KILLED"


def test_a_complete_training_is_finished_by_the_next_task(tmp_path, data_path, client):
    record = prepare(tmp_path, data_path=data_path, run_name="t")
    attach(tmp_path).begin()
    assert close_abandoned(tmp_path, "FINISHED")
    with attach(tmp_path) as run:
        run.metrics({"Test Loss": 1.0}, 0, of="g1/test")
    with attach(tmp_path) as run:
        run.metrics({"Test Loss": 1.5}, 0, of="g1/test")
        run.metrics({"Test Loss": 2.0}, 0, of="g1/other")
    assert client.get_run(record.run_id).info.status == "FINISHED"
    assert [value for _, value in history(client, record.run_id, "Test Loss")] == [1.0, 2.0]
    assert not close_abandoned(tmp_path, "KILLED")


def test_two_processes_at_once_deliver_all(tmp_path, data_path, client):
    run_id = prepare(tmp_path, data_path=data_path, run_name="t").run_id
    one, two = attach(tmp_path), attach(tmp_path)
    one.metrics({"loss": 1.0}, 0)
    assert one.flush()
    two.metrics({"auc": 1.0}, 0)
    two.finish()
    one.finish("FINISHED")
    assert set(client.get_run(run_id).data.metrics) == {"loss", "auc"}


OLD = Path(__file__).parent / "journal_of_a2464a8"


@pytest.fixture
def old(tmp_path, data_path):
    """An unfinished training as commit a2464a8 left it when it was killed: the server never answered."""
    if not compat.has_sqlalchemy():
        pytest.skip("mlflow-skinny has no database")
    directory = tmp_path / "old"
    shutil.copytree(OLD, directory)
    for path in [directory / "run.json", *directory.glob("journal/*.jsonl")]:
        text = path.read_text().replace("DIRECTORY", str(directory))
        path.write_text(text.replace("TRACKING_URI", f"sqlite:///{data_path}/mlflow.db"))
    return directory


def test_the_journal_of_commit_a2464a8_is_delivered(old, client, capsys):
    assert main(["tracking", "sync", str(old)]) == 0
    assert "closed as KILLED" in capsys.readouterr().out
    run_id = RunRecord.read(old).run_id
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("v1 DeepJetHLT v1", "KILLED")
    assert run.data.params == {"learning_rate": "0.001"}
    assert (run.data.tags["world_size"], run.data.tags["task"]) == ("2", "TrainingTask")
    assert history(client, run_id, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert math.isnan(run.data.metrics["Training Loss"])
    assert run.data.metrics["Validation Loss"] == 0.5
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["v1"]
    assert [entry.path for entry in client.list_artifacts(run_id)] == ["figures", "filelist.txt"]
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert (model.name, model.status) == ("best_model", "READY")
    (child,) = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert child.data.metrics == {"Training Loss": 0.25}


def test_a_training_goes_on_in_the_journal_of_commit_a2464a8(old, client):
    with attach(old) as run:
        run.begin()
        run.metrics({"train/loss": 9.0, "train/lr": 0.5}, 2)  # the first wins
        run.metrics({"train/loss": 0.25}, 3)
        run.finish("FINISHED")
    run_id = run.record.run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert history(client, run_id, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 0.25)]


@pytest.mark.long
def test_processes_that_deliver_at_once_make_one_run(old, client):
    code = "import sys; from bhive_mltf.tracking import attach; attach(sys.argv[1]).finish()"
    processes = [subprocess.Popen([sys.executable, "-c", code, old]) for _ in range(2)]
    assert [process.wait(180) for process in processes] == [0, 0]
    runs = client.search_runs([RunRecord.read(old).experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["model_performance_metrics", "v1 DeepJetHLT v1"]
    run = client.get_run(RunRecord.read(old).run_id)
    assert len(run.outputs.model_outputs) == 1
    assert history(client, run.info.run_id, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


def test_an_old_status_never_comes_after_a_new_one(tmp_path, data_path, client):
    run_id = prepare(tmp_path, data_path=data_path, run_name="t").run_id
    first, last = Journal(tmp_path), Journal(tmp_path)
    first.append("status", status="RUNNING")
    ended = int(time.time() * 1000) + 5000
    last.append("status", status="FAILED", time=ended)
    client.set_terminated(run_id, "FAILED")  # by a process that delivered both
    statuses = []
    real = type(client).update_run

    def noted(self, run_id, status=None, name=None):
        statuses.append(status)
        return real(self, run_id, status, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(client), "update_run", noted)
        attach(tmp_path).finish()
    assert statuses == []
    assert client.get_run(run_id).info.status == "FAILED"
    assert client.get_run(run_id).info.end_time == ended


def internal_errors(monkeypatch, of):
    """The store answers points of the metric `of`, or everything if it is empty, with an error of its own."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    log_batch, set_tag = MlflowClient.log_batch, MlflowClient.set_tag

    def batch(self, run_id, metrics=(), **others):
        if not of or any(metric.key == of for metric in metrics):
            raise MlflowException("the database is locked")
        return log_batch(self, run_id, metrics=metrics, **others)

    def tag(self, *arguments):
        if not of:
            raise MlflowException("the database is locked")
        return set_tag(self, *arguments)

    monkeypatch.setattr("bhive_mltf.tracking.sender._MAX_TRIES", 1)
    monkeypatch.setattr(MlflowClient, "log_batch", batch)
    monkeypatch.setattr(MlflowClient, "set_tag", tag)


def test_a_store_in_trouble_of_its_own_loses_no_point(tmp_path, data_path, client, said):
    run_id = prepare(tmp_path, data_path=data_path, run_name="t").run_id
    run = attach(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        internal_errors(patch, "")
        run.metrics({"loss": 1.0, "accuracy": 0.5}, 0)
        assert not run.flush(4)
    run.finish()
    assert client.get_run(run_id).data.metrics == {"loss": 1.0, "accuracy": 0.5}
    assert len(said()) == 1
    assert "cannot take data now" in said()[0]


def test_a_point_that_the_store_cannot_take_is_left_out(tmp_path, data_path, client, said, monkeypatch):
    run_id = prepare(tmp_path, data_path=data_path, run_name="t").run_id
    internal_errors(monkeypatch, "odd")
    run = attach(tmp_path)
    run.metrics({"loss": 1.0, "odd": 0.5, "accuracy": 0.5}, 0)
    run.finish()
    assert client.get_run(run_id).data.metrics == {"loss": 1.0, "accuracy": 0.5}
    assert "refused a point 'odd'" in said()[1]


@pytest.mark.long
def test_a_server_started_late_and_killed_in_between(relay, tmp_path, said, capsys):
    os.environ["MLFLOW_TRACKING_URI"] = relay.address
    os.environ["MLFLOW_EXPERIMENT_NAME"] = "late"
    directory = tmp_path / "training"
    relay.shut()
    record = prepare(directory, data_path=tmp_path, run_name="t", params={"lr": 0.1}, tags={"colour": "red"})
    assert record.pending
    run = attach(directory)
    run.begin()
    run.metrics({"loss": 1.0}, 0)
    run.nested("child").metrics({"loss": 1.0}, 0)
    relay.open()
    assert any(run.flush() for _ in range(6))  # each waits ten seconds for a server that was away
    client = connect(f"http://127.0.0.1:{relay.target}")
    run_id = RunRecord.read(directory).run_id
    assert run.record.run_id == run_id
    assert client.get_run(run_id).data.params == {"lr": "0.1"}
    assert client.get_run(run_id).data.tags["colour"] == "red"
    assert client.get_run(run_id).info.run_name == "t"
    relay.shut()
    run.metrics({"loss": 0.5}, 1)
    run.text("hello", "hello.txt")
    run.model(nn.Linear(1, 1), step=1, metrics={"loss": 0.5})
    run.finish("FINISHED", timeout=1.0)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert "tracking sync" in said()[-1]
    assert main(["tracking", "sync", str(tmp_path), "--timeout", "1"]) == 1
    assert "NOT delivered" in capsys.readouterr().out
    relay.open()
    del os.environ["MLFLOW_EXPERIMENT_NAME"]
    assert main(["tracking", "sync", str(tmp_path)]) == 0
    kept = client.get_run(run_id)
    assert kept.info.status == "FINISHED"
    assert [p.value for p in client.get_metric_history(run_id, "loss")] == [1.0, 0.5]
    assert client.get_experiment(kept.info.experiment_id).name == "late"
    assert [entry.path for entry in client.list_artifacts(run_id)] == ["hello.txt"]
    assert len(kept.outputs.model_outputs) == 1
    assert not list((directory / "journal/models").iterdir())
