"""Runs compared: what differs is named, in whatever it was planted."""

import pytest

from bhive_mltf.errors import TrackingError
from bhive_mltf.tracking import attach, prepare
from bhive_mltf.tracking.history import differences as compared
from bhive_mltf.tracking.history import snapshot

LOCK = "# Python 3\nbhive_mltf==0.1\nnumpy==2.0  # contents aa\ntorch==2.13.0  # contents bb\n"


def write(directory, data_path, *, rate=0.001, digest="d1", commit="c" * 40, patch="", numpy="2.0", loss=0.5):
    prepare(directory, data_path=data_path, run_name="t")
    with attach(directory) as run:
        facts = {"git": {"commit": commit, "dirty": bool(patch)}, "machine": {"host": "h", "python": "3.11.7"}}
        run.json(facts, "environment.json")
        plan = {"learning_rate": rate, "directory": str(directory), "config": {"name": "c", "bins_pt": [1, 2]}}
        run.json(plan, "plan.json")
        run.text(LOCK.replace("numpy==2.0", f"numpy=={numpy}"), "environment.lock")
        if patch:
            run.text(patch, "code.patch")
        sources = [{"path": "/a.root", "content_id": f"id of {digest}", "entries": 3}]
        run.json({"digest": digest, "sources": sources}, "data/training.json")
        for step, value in ((10, 0.9), (20, loss), (30, 0.4)):
            run.metrics({"train/loss": value}, step)
        run.finish("FINISHED")
    return directory


@pytest.fixture
def base(data_path):
    return write(data_path / "one", data_path)


@pytest.mark.parametrize(
    ("planted", "named"),
    [
        ({}, []),
        ({"rate": 0.002}, [("parameters", "learning_rate")]),
        ({"digest": "d2"}, [("data", "training set, ROOT file 0"), ("data", "training set, digest")]),
        ({"commit": "e" * 40}, [("code", "commit")]),
        ({"patch": "diff"}, [("code", "changes since the commit")]),
        ({"numpy": "2.1"}, [("packages", "numpy")]),
    ],
)
def test_a_planted_difference_is_named(base, data_path, planted, named):
    other = write(data_path / "two", data_path, **planted)
    runs = [snapshot.of_directory(path) for path in (base, other)]
    assert [(one.topic, one.name) for one in compared.differences(runs)] == named


def test_since_when_losses_differ(base, data_path):
    other = snapshot.of_directory(write(data_path / "two", data_path, loss=0.6))
    one = snapshot.of_directory(base)
    assert compared.first_difference(one.series["train/loss"], other.series["train/loss"]) == compared.Since(
        10, 20, (0.5, 0.6)
    )
    assert compared.first_difference(one.series["train/loss"], one.series["train/loss"]) is None
    nan = float("nan")
    assert compared.first_difference({1: nan, 2: 1.0}, {1: nan, 2: 2.0}) == compared.Since(1, 2, (1.0, 2.0))
    assert compared.first_difference({1: 1.0}, {2: 1.0}) is None


def test_the_store_alone_says_the_same(base, data_path):
    there = snapshot.of_directory(base)
    stored = snapshot.of_store(there.run_id, f"sqlite:///{data_path}/mlflow.db")
    assert compared.differences([there, stored]) == []
    assert stored.series == there.series
    assert stored.texts == there.texts


def test_a_run_is_found_by_directory_and_by_id(base, data_path):
    run_id = snapshot.of_directory(base).run_id
    assert snapshot.find(str(base), None).run_id == run_id
    assert snapshot.find(run_id[:6], data_path).directory == base
    with pytest.raises(TrackingError, match="is neither below the folder nor in"):
        snapshot.find("0" * 32, data_path)
    write(data_path / "two", data_path)
    with pytest.raises(TrackingError, match="2 runs begin with ''"):
        snapshot.find("", data_path)


def test_a_run_of_an_older_version_says_less(data_path):
    prepare(data_path / "old", data_path=data_path, run_name="t")
    old = snapshot.of_directory(data_path / "old")
    assert (old.plan, old.packages, old.datasets) == ({}, {}, {})
    assert compared.differences([old, old]) == []


def test_flat_names():
    value = {"groups": [{"name": "cpf", "columns": ["a", "b"]}], "empty": {}}
    assert dict(snapshot.flat(value)) == {"groups.cpf.name": "cpf", "groups.cpf.columns": ["a", "b"], "empty": {}}
