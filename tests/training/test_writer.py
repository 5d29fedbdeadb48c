"""Checkpoints written behind the training's back."""

import threading
import time

import pytest
import torch

from bhive_mltf.errors import CheckpointError
from bhive_mltf.ranks.distributed import World
from bhive_mltf.ranks.signals import TrainingInterruptedError
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.checkpointing.async_writer import BackgroundWriter, on_host
from bhive_mltf.training.engine import train
from tests.helpers import standin
from tests.helpers.standin import plan
from tests.training.test_engine import Seen, run, same


def test_a_copy_stays_as_it_was_and_has_the_same_content(tmp_path):
    embed = torch.nn.Linear(3, 3, bias=False)
    tied = torch.nn.ModuleDict({"a": embed, "b": embed, "empty": torch.nn.ParameterDict({"e": torch.zeros(0)})})
    state = {"model": dict(tied.state_dict()), "lists": [1, [torch.ones(2)]], "betas": (0.9, 0.99), "t": embed.weight.T}
    torch.save(state, tmp_path / "before.pt")
    copy, ready = on_host(state)
    with torch.no_grad():
        embed.weight += 1
    state["lists"][1].append(2)
    ready()
    torch.save(copy, tmp_path / "copy.pt")
    loaded = [torch.load(tmp_path / name, weights_only=True) for name in ("before.pt", "copy.pt")]
    assert torch.equal(loaded[0]["model"]["a.weight"], loaded[1]["model"]["a.weight"])
    assert torch.equal(loaded[0]["t"], loaded[1]["t"])
    assert loaded[1]["model"]["a.weight"].data_ptr() == loaded[1]["model"]["b.weight"].data_ptr()
    assert len(loaded[1]["lists"][1]) == 1
    assert loaded[1]["betas"] == (0.9, 0.99)


def test_nobody_waits_and_errors_come_back():
    writer, go, done = BackgroundWriter(), threading.Event(), []
    started = time.monotonic()
    for number in range(2):
        writer.put(lambda number=number: (go.wait(5), done.append(number)))
    writer.check()
    assert time.monotonic() - started < 1
    assert done == []
    go.set()
    writer.drain()
    assert done == [0, 1]

    def full():
        raise CheckpointError("disk full")

    writer.put(full)
    with pytest.raises(CheckpointError, match="disk full"):
        writer.drain()
    writer.put(full)
    writer.close()  # a training that fails for another reason tells that one


@pytest.fixture
def slow_disk(monkeypatch):
    save = checkpoint.write_checkpoint

    def slowly(path, state):
        time.sleep(0.3)
        save(path, state)

    monkeypatch.setattr(checkpoint, "write_checkpoint", slowly)


def test_the_steps_go_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    save, seen, while_writing = checkpoint.write_checkpoint, Seen(stop_at=9), []

    def slow(path, state):
        # the first one is not done before two more steps are
        deadline = time.monotonic() + 30
        while path.name == "step_000000004.pt" and seen.steps < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        while_writing.append(seen.steps)
        save(path, state)

    monkeypatch.setattr(checkpoint, "write_checkpoint", slow)
    with pytest.raises(TrainingInterruptedError, match="saved"):
        run(tmp_path / "cut", seen, checkpoint_steps=4)
    assert while_writing[0] >= 6
    # asked to stop: what it says is saved, is
    assert list(checkpoint.step_files(tmp_path / "cut")) == [9, 8]
    same(run(tmp_path / "cut"), run(tmp_path / "whole"))


def test_a_full_disk_stops_the_training_at_a_boundary(tmp_path, monkeypatch):
    def full(path, state):
        raise CheckpointError("disk full")

    monkeypatch.setattr(checkpoint, "write_checkpoint", full)
    seen = Seen()
    with pytest.raises(CheckpointError, match="disk full"):
        run(tmp_path, seen, epochs=50, checkpoint_steps=1)
    assert seen.steps < 200
    assert seen.calls[-1] == "FAILED"


def test_a_failing_training_still_finishes_what_it_writes(tmp_path, slow_disk):
    with pytest.raises(KeyboardInterrupt):
        train(plan(tmp_path, checkpoint_steps=4), World(), standin.build, Seen(crash_at=5))
    assert list(checkpoint.step_files(tmp_path)) == [4]
