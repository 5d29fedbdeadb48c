"""Trainings in this process, on jets in memory."""

import json
import math
import signal

import numpy as np
import pytest
import torch

from bhive_mltf.errors import CheckpointError, DataError, LockedError, NonFiniteLossError
from bhive_mltf.files import lock
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.ranks.distributed import World
from bhive_mltf.ranks.signals import TrainingInterruptedError
from bhive_mltf.training import engine
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.engine import train
from bhive_mltf.training.launch import launch
from bhive_mltf.training.metrics import N_SUMS
from bhive_mltf.training.monitoring.observers import Interval, Observer
from bhive_mltf.training.plan import TrainingPlan
from tests.helpers import standin
from tests.helpers.standin import plan

UPSTREAM_KEYS = {
    "epoch",
    "model_state_dict",
    "optimizer_state_dict",
    "scheduler_state_dict",
    "loss_train",
    "acc_train",
    "loss_val",
    "acc_val",
}


class Seen(Observer):
    """Keeps what it is told; may interrupt the training at a step."""

    def __init__(self, stop_at=None, crash_at=None):
        self.calls, self.stop_at, self.crash_at, self.steps = [], stop_at, crash_at, 0

    def phase(self, name, epoch, done, total):
        self.name = name
        self.calls.append((name, epoch, done, total))

    def advance(self, n_jets):
        self.steps += 1
        if self.steps == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        if self.steps == self.crash_at:
            raise KeyboardInterrupt

    def interval(self, interval):
        self.calls.append(interval)

    def epoch(self, result):
        self.calls.append(result)

    def model(self, name, model, path, epoch, loss):
        self.calls.append((name, {key: value.clone() for key, value in model.state_dict().items()}, path, epoch, loss))

    def end(self, status):
        self.calls.append(status)


def run(directory, observer=None, **values):
    train(plan(directory, **values), World(), standin.build, observer or Seen())
    return checkpoint.read_checkpoint(directory / "best_model.pt")


def same(one, two):
    assert one["model_state_dict"].keys() == two["model_state_dict"].keys()
    assert all(torch.equal(one["model_state_dict"][k], two["model_state_dict"][k]) for k in one["model_state_dict"])
    names = ("loss_train", "acc_train", "loss_val", "acc_val")
    assert {n: one["histories"][n] for n in names} == {n: two["histories"][n] for n in names}


def test_a_training_leaves_upstreams_files(tmp_path):
    seen = Seen()
    best = run(tmp_path, seen, epochs=3)
    assert best.keys() >= UPSTREAM_KEYS
    assert not any(key.startswith(("module.", "_orig_mod.")) for key in best["model_state_dict"])
    for name in ("training", "validation"):
        metrics = np.load(tmp_path / f"{name}_metrics.npz")
        assert metrics["loss"].shape == metrics["acc"].shape == (3,)
        assert ((metrics["acc"] >= 0) & (metrics["acc"] <= 1)).all()
    assert np.load(tmp_path / "train_time.npy").shape == np.load(tmp_path / "val_time.npy").shape == (3,)
    assert [p.name for p in checkpoint.epoch_files(tmp_path).values()] == ["model_2.pt", "model_1.pt", "model_0.pt"]
    assert best["epoch"] == int(np.argmin(np.load(tmp_path / "validation_metrics.npz")["loss"]))
    assert seen.calls[-1] == "FINISHED"
    last = checkpoint.read_checkpoint(tmp_path / "model_2.pt")
    for call, name, state in ((seen.calls[-3], "last", last), (seen.calls[-2], "best", best)):
        assert (call[0], call[3], call[4]) == (name, state["epoch"], state["histories"]["loss_val"][state["epoch"]])
        assert torch.equal(call[1]["out.weight"], state["model_state_dict"]["out.weight"])
        assert call[2].is_file()


def test_figures_are_exact_sums_over_jets(tmp_path):
    made = plan(tmp_path, epochs=1, loss_weighting=False)
    train(made, World(), standin.build, Seen())
    state = checkpoint.read_checkpoint(tmp_path / "model_0.pt")
    parts = standin.build(made, World())
    parts.model.load_state_dict(state["model_state_dict"])
    parts.model.eval()
    loss = right = weight = 0.0
    for batch in parts.validation.epoch(0):
        logits = parts.model(batch).detach()
        losses = torch.nn.functional.cross_entropy(logits, batch.target, reduction="none")
        loss += (losses.double() * batch.weight.double()).sum().item()
        right += ((logits.argmax(1) == batch.target).double() * batch.weight.double()).sum().item()
        weight += batch.weight.double().sum().item()
    assert state["loss_val"] == pytest.approx(loss / weight, rel=1e-6)
    assert state["acc_val"] == pytest.approx(right / weight, rel=1e-12)


def test_w27_the_rate_follows_epochs_of_different_length(tmp_path):
    """Jets are sampled by weight: each epoch has another number of batches, and none is estimated."""
    seen = Seen()
    run(tmp_path, seen, epochs=4, loss_weighting=False, batch_size=7, lr_scheduler="batch_lin_decay")
    lengths = [call[3] for call in seen.calls if isinstance(call, tuple) and call[0] == "training"]
    assert len(set(lengths)) > 1
    done = np.concatenate([epoch + np.arange(n) / n for epoch, n in enumerate(lengths)])
    decay = np.clip((done - 0.7 * 4) / (0.3 * 4), 0, 1)
    rates = [call.learning_rate for call in seen.calls if isinstance(call, Interval)]
    assert rates == pytest.approx(0.01 * 0.01**decay)
    last = checkpoint.read_checkpoint(tmp_path / "model_3.pt")
    assert len(json.dumps(last["scheduler_state_dict"])) < 200  # no list of milestones


@pytest.mark.parametrize("mixed", [False, True])
def test_n_threads_changes_no_bit(tmp_path, mixed):
    results = [run(tmp_path / str(n), n_threads=n, epochs=1, mixed_precision=mixed) for n in (0, 1, 3)]
    same(results[0], results[1])
    same(results[0], results[2])


def test_w16_the_seed_decides_everything(tmp_path):
    kwargs = {"epochs": 1, "model_kwargs": {"dropout": 0.5}}
    one = run(tmp_path / "1", **kwargs)
    torch.rand(3)
    same(one, run(tmp_path / "2", **kwargs))
    other = run(tmp_path / "3", seed=2, **kwargs)
    assert not torch.equal(one["model_state_dict"]["out.weight"], other["model_state_dict"]["out.weight"])


@pytest.mark.parametrize("stop_at", [4, 11, 15])
def test_a_cut_training_goes_on_to_the_same_bits(tmp_path, stop_at):
    # 11 steps and 2 batches of validation per epoch: in mid-epoch, at the end of the steps, in the next epoch
    kwargs = {"epochs": 3, "model_kwargs": {"dropout": 0.3}, "optimizer": "NAdam", "lr_scheduler": "batch_lin_decay"}
    whole = run(tmp_path / "whole", **kwargs)
    seen = Seen(stop_at=stop_at)
    with pytest.raises(TrainingInterruptedError, match="SIGTERM"):
        run(tmp_path / "cut", seen, **kwargs)
    assert seen.calls[-1] == "KILLED"
    same(whole, run(tmp_path / "cut", **kwargs))
    last = [checkpoint.read_checkpoint(checkpoint.epoch_path(tmp_path / name, 2)) for name in ("whole", "cut")]
    same(*last)


@pytest.mark.parametrize("optimizer", ["Ranger", pytest.param("LBFGS", marks=pytest.mark.long)])
def test_every_kind_of_optimizer_goes_on_to_the_same_bits(tmp_path, optimizer):
    kwargs = {"epochs": 2, "model_kwargs": {"dropout": 0.3}, "optimizer": optimizer, "learning_rate": 0.1}
    run(tmp_path / "whole", **kwargs)
    with pytest.raises(TrainingInterruptedError):
        run(tmp_path / "cut", Seen(stop_at=8), **kwargs)
    run(tmp_path / "cut", **kwargs)
    whole, cut = (checkpoint.read_checkpoint(checkpoint.epoch_path(tmp_path / name, 1)) for name in ("whole", "cut"))
    same(whole, cut)
    assert whole["histories"]["loss_train"][1] < whole["histories"]["loss_train"][0]


def test_a_crash_goes_on_from_the_last_step_checkpoint(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Seen(crash_at=9), checkpoint_steps=3, keep_checkpoints=2)
    assert list(checkpoint.step_files(tmp_path / "cut")) == [6, 3]
    checkpoint.step_path(tmp_path / "cut", 6).write_bytes(b"damaged")
    seen = Seen()
    same(whole, run(tmp_path / "cut", seen))
    assert seen.calls[0] == ("training", 0, 3, 11)


def test_w18_the_last_epochs_file_comes_last(tmp_path, monkeypatch):
    order, save = [], checkpoint.write_checkpoint
    monkeypatch.setattr(
        checkpoint, "write_checkpoint", lambda path, state: (order.append(path.name), save(path, state))
    )
    run(tmp_path, epochs=1)
    assert order == ["best_model.pt", "model_0.pt"]

    def full(path, state):
        if path.name == "model_1.pt":
            raise CheckpointError("disk full")
        save(path, state)

    monkeypatch.setattr(checkpoint, "write_checkpoint", full)
    with pytest.raises(CheckpointError, match="disk full"):
        run(tmp_path / "failing")
    assert not (tmp_path / "failing" / "model_1.pt").exists()
    assert np.load(tmp_path / "failing" / "training_metrics.npz")["loss"].shape == (2,)
    monkeypatch.setattr(checkpoint, "write_checkpoint", save)
    same(run(tmp_path / "failing"), run(tmp_path / "whole"))


def test_w19_extending_goes_on_where_it_ended(tmp_path):
    run(tmp_path, epochs=2)
    run(tmp_path, epochs=2, extend_training=1)
    assert np.load(tmp_path / "train_time.npy").shape == (3,)
    assert np.load(tmp_path / "training_metrics.npz")["loss"].shape == (3,)
    assert (tmp_path / "model_2.pt").is_file()


def test_only_the_last_epoch_is_kept_when_asked(tmp_path):
    run(tmp_path, epochs=3, keep_all_epochs_models=False)
    assert list(checkpoint.epoch_files(tmp_path)) == [2]


def test_another_setting_is_refused(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=r"settings\.batch_size = 25, this training has 20"):
        run(tmp_path, epochs=1, batch_size=20)
    with pytest.raises(CheckpointError, match=r"model_kwargs\.width"):
        run(tmp_path, epochs=1, model_kwargs={"width": 4})


def test_a_loss_that_is_not_finite_names_epoch_and_step(tmp_path, monkeypatch):
    seen = Seen()
    build = standin.build

    def poisoned(made, world):
        parts = build(made, world)
        healthy = parts.training.epoch

        def epoch(epoch, start=0):
            for i, batch in enumerate(healthy(epoch, start), start):
                if (epoch, i) == (1, 4):
                    batch.groups["cpf"].features[:] = math.nan
                yield batch

        parts.training.epoch = epoch
        return parts

    with pytest.raises(NonFiniteLossError, match=r"nan at step 15 \(epoch 1, batch 4\)"):
        train(plan(tmp_path), World(), poisoned, seen)
    assert seen.calls[-1] == "FAILED"
    assert not (tmp_path / "model_1.pt").exists()


def test_jets_without_weight_cannot_validate(tmp_path, monkeypatch):
    monkeypatch.setattr("bhive_mltf.training.step.Stepper.validate", lambda self, batch: torch.zeros(N_SUMS).double())
    with pytest.raises(DataError, match="left to validate"):
        run(tmp_path)


def test_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "LOCK_WAIT", 0.1)
    with DirectoryLock(tmp_path), pytest.raises(LockedError, match="in use by process"):
        run(tmp_path)


def test_float64_and_float16_are_about_computing_only(tmp_path):
    double = run(tmp_path / "64", epochs=1, training_precision="float64")
    single = run(tmp_path / "32", epochs=1)
    half = run(tmp_path / "16", epochs=1, training_precision="float16")
    assert double["model_state_dict"]["out.weight"].dtype == torch.float64
    assert half["model_state_dict"]["out.weight"].dtype == torch.float32
    assert double["loss_train"] == pytest.approx(single["loss_train"], rel=1e-5)
    assert half["loss_train"] == pytest.approx(single["loss_train"], rel=1e-2)
    assert half["loss_train"] != single["loss_train"]


def test_launch_with_one_rank_trains_here_and_leaves_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(engine.making, "build", standin.build)
    monkeypatch.setattr(engine.train, "__defaults__", (standin.build, Seen()))
    threads = torch.get_num_threads()
    launch(plan(tmp_path, epochs=1, ranks_per_node=0, threads_per_rank=2))
    assert TrainingPlan.read(tmp_path / "plan.json").ranks_per_node == 1
    assert (tmp_path / "model_0.pt").is_file()
    assert torch.get_num_threads() == threads


def test_the_next_rank_outwaits_the_lock_of_a_lost_node():
    assert engine.LOCK_WAIT > lock.STALE_AFTER_S + 2 * lock.HEARTBEAT_S
