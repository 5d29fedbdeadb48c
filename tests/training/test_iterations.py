"""Training by iterations: rounds of a number of steps, across epochs. An epoch has 11 batches here."""

import numpy as np
import pytest
import torch

from bhive_mltf.ranks.distributed import World
from bhive_mltf.ranks.signals import TrainingInterruptedError
from bhive_mltf.training.checkpointing import checkpoint, restart
from bhive_mltf.training.checkpointing.position import Position
from bhive_mltf.training.engine import train
from bhive_mltf.training.monitoring.observers import EpochResult, Interval
from bhive_mltf.training.rounds import Iterations, Rounds
from tests.helpers import standin
from tests.helpers.standin import plan
from tests.training.test_engine import Seen, run, same

ITERATIONS = {"epochs": 0, "use_iterations": True, "total_iterations": 19, "n_iters_per_save": 8}


def models(directory):
    return sorted(checkpoint.epoch_files(directory))


def test_w23_a_tail_that_is_no_multiple_is_saved_too(tmp_path):
    seen = Seen()
    best = run(tmp_path, seen, **ITERATIONS)
    assert models(tmp_path) == [8, 16, 19]
    assert np.load(tmp_path / "training_metrics.npz")["loss"].shape == (3,)
    assert np.load(tmp_path / "train_time.npy").shape == np.load(tmp_path / "val_time.npy").shape == (3,)
    last = checkpoint.read_checkpoint(tmp_path / "model_19.pt")
    assert (last["epoch"], last["global_step"], last["data_pass"], last["batch_in_epoch"]) == (19, 19, 1, 8)
    assert best["epoch"] in (8, 16, 19)
    assert [c[2:] for c in seen.calls if isinstance(c, tuple) and c[0] == "training"] == [(0, 8), (0, 8), (0, 3)]


def test_w23_metrics_have_the_iteration_as_their_step(tmp_path):
    seen = Seen()
    run(tmp_path, seen, **ITERATIONS)
    assert [c.epoch for c in seen.calls if isinstance(c, EpochResult)] == [8, 16, 19]
    assert [c.global_step for c in seen.calls if isinstance(c, Interval)] == list(range(1, 20))


def test_one_round_of_all_batches_is_an_epoch(tmp_path):
    one = run(tmp_path / "epoch", epochs=1, lr_scheduler="batch_lin_decay")
    values = {"epochs": 0, "use_iterations": True, "total_iterations": 11, "n_iters_per_save": 11}
    same(one, run(tmp_path / "iterations", **values, lr_scheduler="batch_lin_decay"))


@pytest.mark.parametrize("stop_at", [5, 8, 14, 21])
def test_w19_a_cut_training_by_iterations_ends_bit_for_bit(tmp_path, stop_at):
    # 2 batches of validation after each round: in the first round, at its last step, across the epoch, in the tail
    kwargs = {**ITERATIONS, "model_kwargs": {"dropout": 0.3}, "lr_scheduler": "batch_cosine_warmup"}
    whole = run(tmp_path / "whole", **kwargs)
    with pytest.raises(TrainingInterruptedError):
        run(tmp_path / "cut", Seen(stop_at=stop_at), **kwargs)
    same(whole, run(tmp_path / "cut", **kwargs))
    same(*(checkpoint.read_checkpoint(tmp_path / name / "model_19.pt") for name in ("whole", "cut")))
    assert np.load(tmp_path / "cut" / "val_time.npy").shape == (3,)


def test_w19_extending_and_going_back_by_iterations(tmp_path):
    run(tmp_path, **ITERATIONS)
    run(tmp_path, **ITERATIONS, extend_training=6)
    assert models(tmp_path) == [8, 16, 19, 24, 25]
    assert np.load(tmp_path / "validation_metrics.npz")["loss"].shape == (5,)
    first = checkpoint.read_checkpoint(tmp_path / "model_19.pt")
    restart.resume_epoch(tmp_path, 16, iterations=True)
    assert models(tmp_path) == [8, 16]
    assert np.load(tmp_path / "val_time.npy").shape == (2,)
    run(tmp_path, **ITERATIONS)
    same(first, checkpoint.read_checkpoint(tmp_path / "model_19.pt"))


def test_only_the_last_model_is_kept_when_asked(tmp_path):
    run(tmp_path, **ITERATIONS, keep_all_epochs_models=False)
    assert models(tmp_path) == [19]


def test_the_schedule_runs_over_the_planned_iterations(tmp_path):
    seen = Seen()
    run(tmp_path, seen, **ITERATIONS, lr_scheduler="batch_lin_decay")
    rates = [c.learning_rate for c in seen.calls if isinstance(c, Interval)]
    flat = 0.7 * 19
    assert rates == pytest.approx([0.01 * 0.01 ** max(0.0, (i - flat) / (19 - flat)) for i in range(19)])


def test_rounds_of_epochs_and_of_iterations():
    rounds = Iterations(2.5, last=10, per_round=4)
    assert rounds.span(Position(global_step=9, round_start=8), 11) == (1, 2)
    assert rounds.span(Position(global_step=8, round_start=4), 11) == (4, 4)
    assert rounds.progress(Position(global_step=9), 11) == (2, 0.25)
    assert rounds.is_left(Position(global_step=10, round_start=8))
    assert not rounds.is_left(Position(global_step=10, round_start=10))
    epochs = Rounds(3, last=2)
    assert epochs.progress(Position(epoch=1, batch=5), 10) == (1, 0.5)
    position = Position(epoch=2, batch=10, sums=torch.ones(3))
    epochs.advance(position)
    assert not epochs.is_left(position)
    assert (position.batch, position.sums.tolist()) == (0, [0, 0, 0])


def test_a_short_loader_is_an_error(tmp_path):
    def build(made, world):
        parts = standin.build(made, world)
        parts.training.n_batches = lambda epoch: 12
        return parts

    with pytest.raises(Exception, match="Epoch 0 has 12 batches, but the loader gave 11"):
        train(plan(tmp_path), World(), build, Seen())
