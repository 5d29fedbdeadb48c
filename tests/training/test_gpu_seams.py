"""What runs on GPUs, through the places where a CPU can stand in for one."""

from contextlib import contextmanager

import pytest
import torch

from bhive_mltf.ranks.distributed import World, backends
from bhive_mltf.ranks.signals import TrainingInterruptedError
from bhive_mltf.training import transfer
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.engine import train
from bhive_mltf.training.monitoring.observers import Observer
from bhive_mltf.training.precision import Precision
from bhive_mltf.training.transfer import DeviceLane, Transfer
from tests.helpers import standin
from tests.helpers.standin import plan
from tests.training.test_engine import Seen, same

CPU = torch.device("cpu")


def run(directory, observer=None, **values):
    train(plan(directory, **values), World(), standin.build, observer or Observer())
    return checkpoint.read_checkpoint(directory / "best_model.pt")


class Recorder:
    """A lane that writes down what it is asked for."""

    def __init__(self):
        self.said, self.inside = [], False

    @contextmanager
    def aside(self):
        self.inside = True
        yield
        self.inside = False

    def mark(self):
        assert self.inside
        self.said.append("copy")
        return len(self.said)

    def wait(self, mark):
        assert not self.inside
        self.said.append(f"wait {mark}")

    def hand_over(self, values):
        if self.said[-1] != "hand over":
            self.said.append("hand over")


def test_a_batch_is_copied_while_the_one_before_is_used(monkeypatch):
    lane, alive = Recorder(), []
    monkeypatch.setattr(transfer, "lane_of", lambda device: lane)

    def batches():
        for seed in range(3):
            alive.append(seed)
            yield standin.batch(4, seed=seed)

    for number, batch in enumerate(Transfer(CPU).over(batches())):
        assert torch.equal(batch.target, standin.batch(4, seed=number).target)
        lane.said.append(f"step {number}")
    assert lane.said == [
        "copy", "copy", "wait 1", "hand over", "step 0",
        "copy", "wait 2", "hand over", "step 1",
        "wait 6", "hand over", "step 2",
    ]  # fmt: skip


def test_a_training_through_a_lane_has_the_same_bits(tmp_path, monkeypatch):
    plain = run(tmp_path / "plain", n_threads=1)
    monkeypatch.setattr(transfer, "lane_of", lambda device: DeviceLane(torch.cpu, device))
    same(plain, run(tmp_path / "lane", n_threads=1))
    with pytest.raises(TrainingInterruptedError):
        run(tmp_path / "cut", Seen(stop_at=4))
    same(plain, run(tmp_path / "cut"))


def test_a_cpu_needs_no_lane():
    assert transfer.lane_of(CPU) is None


def scaler(precision, device):
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)


def test_the_scaler_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(Precision, "scaler", scaler)
    kwargs = {"mixed_precision": True, "epochs": 3}
    whole = run(tmp_path / "whole", **kwargs)
    assert whole["scaler_state_dict"]["scale"] > 1024.0
    with pytest.raises(TrainingInterruptedError):
        run(tmp_path / "cut", Seen(stop_at=15), **kwargs)
    cut = run(tmp_path / "cut", **kwargs)
    same(whole, cut)
    last = [checkpoint.read_checkpoint(checkpoint.epoch_path(tmp_path / name, 2)) for name in ("whole", "cut")]
    assert last[0]["scaler_state_dict"] == last[1]["scaler_state_dict"]


def test_a_scaled_gradient_that_overflows_skips_its_step(tmp_path, monkeypatch):
    monkeypatch.setattr(Precision, "scaler", scaler)
    one, jets = make_stepper(tmp_path), standin.batch(20)
    one.train(jets, 0, 0.1)
    before = [p.detach().clone() for p in one.model.parameters()]
    one.model.out.weight.register_hook(lambda gradient: gradient * float("inf"))
    one.train(jets, 1, 0.1)
    assert one.scaler.get_scale() == 512.0
    assert not torch.isfinite(one.guard.norm)
    assert all(torch.equal(p, b) for p, b in zip(one.model.parameters(), before, strict=True))


def make_stepper(directory):
    from tests.training.test_step import stepper

    return stepper(directory, "AdamW", mixed_precision=True)


def test_a_gradient_scaler_leaves_no_weights_of_a_bad_step(tmp_path, monkeypatch):
    """G7: the scaler skips steps by itself, the guard does not hold the weights for a report."""
    assert make_stepper(tmp_path / "plain").guard.holds
    monkeypatch.setattr(Precision, "scaler", scaler)
    assert not make_stepper(tmp_path / "scaled").guard.holds


def test_backends():
    assert backends(CPU) == ("gloo", "gloo")
    assert backends(torch.device("cuda", 0)) == ("cpu:gloo,cuda:nccl", "nccl")
