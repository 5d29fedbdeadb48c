"""Studies: the space, workers that are killed, pruning, and what comes out."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bhive_mltf.errors import ParameterError
from bhive_mltf.ranks.signals import TrainingInterruptedError
from bhive_mltf.training.studies import space, study
from bhive_mltf.training.studies.names import read_best
from tests.helpers.waiting import wait_for

ALLOWED = ("learning_rate", "batch_size", "optimizer", "model_kwargs")


def write(tmp_path, text):
    path = tmp_path / "space.yml"
    path.write_text(text)
    return path


def test_a_space_is_read(tmp_path):
    found = space.read(
        write(
            tmp_path,
            "learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}\n"
            "optimizer: {choices: [AdamW, Lion]}\n"
            "model_kwargs.num_layers: {low: 2, high: 6, step: 2}\n",
        ),
        ALLOWED,
    )
    assert found["learning_rate"] == space.Range(1e-4, 1e-2, log=True)
    assert found["optimizer"].choices == ("AdamW", "Lion")
    assert found["model_kwargs.num_layers"].is_integer
    assert not found["learning_rate"].is_integer
    assert space.parameters({"batch_size": 8, "model_kwargs.a": 1}, {"b": 2}) == {
        "batch_size": 8,
        "model_kwargs": {"b": 2, "a": 1},
    }
    assert space.parameters({"batch_size": 8}, {"b": 2}) == {"batch_size": 8}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no parameter"),
        ("a: [", "cannot be read"),
        ("learning_rat: {low: 1, high: 2}", "nearest: learning_rate"),
        ("learning_rate: 3", "give low and high"),
        ("learning_rate: {low: 3, high: 2}", "low <= high"),
        ("learning_rate: {low: 0, high: 2, log: true}", "above 0"),
        ("learning_rate: {low: a, high: b}", "give numbers"),
        ("optimizer: {choices: []}", "list of choices"),
        ("optimizer: {choices: [a], low: 1}", "nothing else"),
    ],
)
def test_a_space_that_is_none(tmp_path, text, said):
    with pytest.raises(ParameterError, match=said):
        space.read(write(tmp_path, text), ALLOWED)


def test_a_missing_space_and_missing_optuna(tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match="cannot be read"):
        space.read(tmp_path / "no.yml", ALLOWED)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ParameterError, match=r"bhive_mltf\[optimize\]"):
        study.Study(request(tmp_path))


# "trains": one epoch per step, the loss is the parameter and falls; goes on where it was cut
TRAIN = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
folder, value, epochs, pause = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
folder.mkdir(parents=True, exist_ok=True)
(folder / f"start_{time.time_ns()}").touch()
path = folder / "validation_metrics.npz"
losses = list(np.load(path)["loss"]) if path.exists() else []
while len(losses) < epochs:
    losses.append(value + 1 / (len(losses) + 1))
    np.savez(folder / "new.npz", loss=losses)
    os.replace(folder / "new.npz", path)
    if value > 8 and len(losses) == 2:
        sys.exit(3)
    if value < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(pause)
"""


def request(folder, n_trials=4, workers=1, pause=0.0, high=1.0, prune=False, epochs=3, closed=()):
    def training(number, values):
        directory = folder / "trainings" / str(number)
        arguments = [str(directory), str(values["learning_rate"]), str(epochs), str(pause)]
        command = [sys.executable, "-c", TRAIN, *arguments]
        return study.Training(command, directory, close=lambda: closed.append(number))

    return study.StudyRequest(
        directory=folder / "study",
        name="s",
        n_trials=n_trials,
        space={"learning_rate": space.Range(min(0.0, high), high)},
        training=training,
        fixed_kwargs={},
        workers=workers,
        seed=1,
        prune=prune,
        environment={},
    )


@pytest.fixture
def fast(monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(study, "POLL_S", 0.05)


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore")
def test_a_study_gives_the_best_trial(tmp_path):
    found = study.Study(request(tmp_path, workers=2))
    found.run()
    summary = found.write()
    assert summary["states"] == {"COMPLETE": 4}
    losses = {one["number"]: one["validation_loss"] for one in found.table()}
    assert summary["best"]["validation_loss"] == min(losses.values())
    assert summary["best"]["validation_loss"] == pytest.approx(summary["best"]["parameters"]["learning_rate"] + 1 / 3)
    assert read_best(tmp_path / "study") == json.loads(json.dumps(summary))
    # the same command again has nothing to do, another space is another study
    study.Study(request(tmp_path)).run()
    assert len(study.Study(request(tmp_path)).table()) == 4
    with pytest.raises(ParameterError, match="another space"):
        study.Study(request(tmp_path, high=2.0))


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore")
def test_the_same_seed_draws_the_same_values_however_often_workers_start(tmp_path):
    for folder, n_trials in (("at once", 3), ("cut", 1), ("cut", 3)):
        study.Study(request(tmp_path / folder, n_trials=n_trials, epochs=1)).run()
    values = [
        [one["parameters"] for one in study.Study(request(tmp_path / name)).table()] for name in ("at once", "cut")
    ]
    assert values[0] == values[1]
    assert len({tuple(one.items()) for one in values[0]}) == 3


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore")
def test_a_failed_training_is_a_failed_trial(tmp_path):
    closed = []
    found = study.Study(request(tmp_path, n_trials=2, high=1000.0, closed=closed))
    found.run()
    assert {one["state"] for one in found.table()} == {"FAIL"}
    assert found.summary()["best"] is None
    assert closed == [0, 1]


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore")
def test_a_training_killed_twice_is_a_failed_trial(tmp_path):
    closed = []
    found = study.Study(request(tmp_path, n_trials=1, high=-1.0, epochs=9, closed=closed))
    found.run()
    assert found.summary()["states"] == {"FAIL": 1}
    assert closed == [0], "nobody else ends what it has left"
    assert len(list((tmp_path / "trainings/0").glob("start_*"))) == study.MAX_ATTEMPTS


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore")
def test_what_ends_a_worker_ends_the_study(tmp_path, monkeypatch):
    found = study.Study(request(tmp_path, n_trials=2, workers=2))

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(found.study, "ask", full)
    with pytest.raises(OSError, match="no space left"):
        found.run()


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore")
def test_the_last_trial_of_a_killed_command_is_taken_up(tmp_path):
    first, second = (study.Study(request(tmp_path, n_trials=1)) for _ in range(2))
    thread = threading.Thread(target=second.run)
    with first._claimed() as number:
        assert number == 0
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "it leaves although a trial runs that may be killed yet"
        assert second.summary()["n_trials"] == 0
    thread.join(30)
    assert second.summary()["states"] == {"COMPLETE": 1}


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from bhive_mltf.training.studies import study
from tests.training.test_studies import request
study.POLL_S = 0.05
study.Study(request(Path(sys.argv[2]), n_trials=int(sys.argv[3]), pause=0.2)).run()
"""


def worker(folder, n_trials):
    command = [sys.executable, "-W", "ignore", "-c", WORKER, str(Path.cwd()), str(folder), str(n_trials)]
    return subprocess.Popen(command, start_new_session=True)


@pytest.mark.long
@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore")
def test_two_workers_one_killed(tmp_path):
    killed, other = worker(tmp_path, 12), worker(tmp_path, 12)
    until = time.monotonic() + 60
    while len(list((tmp_path / "trainings").glob("*/start_*"))) < 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert other.wait(timeout=120) == 0
    found = study.Study(request(tmp_path, n_trials=12))
    # a trial of the killed worker is taken up when its lock is seen to be free, by whoever works next
    found.run()
    assert found.summary()["states"] == {"COMPLETE": 12}


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore")
def test_a_stopped_study_goes_on(tmp_path):
    found = study.Study(request(tmp_path, n_trials=3, pause=0.3, epochs=200))

    def stop():
        wait_for(lambda: list((tmp_path / "trainings").glob("*/validation_metrics.npz")), 60, "a first epoch")
        found._stopped.set()

    threading.Thread(target=stop).start()
    with pytest.raises(TrainingInterruptedError, match="type the command again"):
        found.run()
    states = [one["state"] for one in found.table()]
    assert "RUNNING" in states
    again = study.Study(request(tmp_path, n_trials=3))
    again.run()
    assert again.summary()["states"] == {"COMPLETE": 3}
    assert len(list((tmp_path / "trainings" / str(states.index("RUNNING"))).glob("start_*"))) == 2


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore")
def test_a_hopeless_trial_is_pruned(tmp_path):
    good = study.Study(request(tmp_path, n_trials=5, prune=True))
    good.run()
    bad = request(tmp_path, n_trials=6, prune=True, pause=0.3, epochs=30)
    worse = study.Training
    stopped = []

    def training(number, values):
        directory = tmp_path / "trainings" / str(number)
        arguments = [str(directory), "7.0", "30", "0.2"]
        return worse([sys.executable, "-c", TRAIN, *arguments], directory, lambda: stopped.append(number))

    object.__setattr__(bad, "training", training)
    found = study.Study(bad)
    found.run()
    assert found.table()[5]["state"] == "PRUNED"
    assert stopped == [5]
