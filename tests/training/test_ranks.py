"""Two real ranks: processes over gloo, started by `launch`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from bhive_mltf.errors import ParameterError, RankFailedError
from bhive_mltf.ranks import launcher
from bhive_mltf.ranks.distributed import TIMEOUT_VARIABLE, World, wait_limit
from bhive_mltf.ranks.files import log_path
from bhive_mltf.ranks.launcher import LocalRanks
from bhive_mltf.ranks.process import LAUNCHER_VARIABLE
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.engine import train
from bhive_mltf.training.launch import launch
from bhive_mltf.training.metrics import N_SUMS
from bhive_mltf.training.monitoring.observers import Observer
from bhive_mltf.training.step import Stepper
from tests.helpers import standin
from tests.helpers.standin import COMMAND, plan
from tests.helpers.waiting import wait_for

TWO = LocalRanks(COMMAND)


def one_rank(directory, **values):
    train(plan(directory, **values), World(), standin.build, Observer())
    return checkpoint.read_checkpoint(directory / "best_model.pt")


def two_ranks(directory, **values):
    launch(plan(directory, ranks_per_node=2, **values), TWO)
    assert LAUNCHER_VARIABLE not in os.environ
    return checkpoint.read_checkpoint(directory / "best_model.pt")


def ranks_of(directory):
    """Processes of ranks of this training, zombies aside."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if str(directory / "plan.json") in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_two_ranks_equal_one_in_float64(tmp_path):
    # 25 jets are 12 and 13; validation ends with 0 and 1: 50 jets in batches of 7
    kwargs = {"training_precision": "float64", "epochs": 3, "loss_weighting": False}
    one = one_rank(tmp_path / "one", **kwargs)
    two = two_ranks(tmp_path / "two", **kwargs)
    for name in ("training", "validation"):
        histories = [np.load(tmp_path / where / f"{name}_metrics.npz") for where in ("one", "two")]
        np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-9, atol=0)
        np.testing.assert_allclose(histories[0]["acc"], histories[1]["acc"], rtol=1e-9, atol=0)
    assert list(one["model_state_dict"]) == list(two["model_state_dict"])
    for key, value in one["model_state_dict"].items():
        torch.testing.assert_close(value, two["model_state_dict"][key], rtol=1e-8, atol=1e-10)
    assert (two["world_size"], two["epoch_sums"].shape) == (2, (2, N_SUMS))


@pytest.mark.long
def test_two_ranks_equal_one_with_an_attack_and_a_closure(tmp_path):
    kwargs = {"training_precision": "float64", "epochs": 0, "use_iterations": True, "total_iterations": 12}
    kwargs |= {"n_iters_per_save": 7, "attack": "pgd", "attack_magnitude": 0.1, "optimizer": "LBFGS"}
    states = []
    for name, train_as in (("one", one_rank), ("two", two_ranks)):
        train_as(tmp_path / name, **kwargs)
        states.append(checkpoint.read_checkpoint(checkpoint.epoch_path(tmp_path / name, 12)))
    assert states[0]["histories"]["loss_train"] == pytest.approx(states[1]["histories"]["loss_train"], rel=1e-8)
    assert states[0]["histories"]["loss_val"] == pytest.approx(states[1]["histories"]["loss_val"], rel=1e-8)


@pytest.mark.long
def test_w33_first_step_in_float32_and_unused_parameters(tmp_path):
    # SGD without momentum: the change of the weights is the gradient
    kwargs = {"epochs": 1, "optimizer": "SGD", "checkpoint_steps": 1, "keep_checkpoints": 99, "batch_size": 31}
    kwargs["model_kwargs"] = {"unused": True}
    one_rank(tmp_path / "one", **kwargs)
    two_ranks(tmp_path / "two", **kwargs)
    first = [checkpoint.read_checkpoint(checkpoint.step_path(tmp_path / name, 1)) for name in ("one", "two")]
    torch.manual_seed(0)
    for key, value in first[0]["model_state_dict"].items():
        torch.testing.assert_close(value, first[1]["model_state_dict"][key], rtol=1e-5, atol=1e-6)
    losses = [state["epoch_sums"].sum(0)[0].item() for state in first]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    log = log_path(tmp_path / "two", 0).read_text()
    assert "never_called.weight" in log
    assert "never_called" not in log_path(tmp_path / "two", 1).read_text()


CHAOS = {"epochs": 2, "model_kwargs": {"dropout": 0.3}, "checkpoint_steps": 2, "n_threads": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What nobody disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(standin.REPOSITORY)
        return two_ranks(tmp_path_factory.mktemp("whole"), **CHAOS)


def assert_same(one, two):
    for key, value in one["model_state_dict"].items():
        assert torch.equal(value, two["model_state_dict"][key]), key
    assert one["histories"]["loss_val"] == two["histories"]["loss_val"]
    assert one["histories"]["loss_train"] == two["histories"]["loss_train"]


def distance(one, two):
    states = [torch.cat([v.flatten() for v in state["model_state_dict"].values()]) for state in (one, two)]
    return float((states[0] - states[1]).norm())


@pytest.mark.long
def test_dropout_of_two_ranks_is_another_draw_of_one_training(tmp_path, monkeypatch):
    """Ranks draw their own numbers: as far from one rank as one rank is from itself with other numbers."""
    kwargs = {"training_precision": "float64", "model_kwargs": {"dropout": 0.3}}
    one, two = one_rank(tmp_path / "one", **kwargs), two_ranks(tmp_path / "two", **kwargs)
    assert_same(two, two_ranks(tmp_path / "again", **kwargs))
    real = Stepper.seed
    monkeypatch.setattr(Stepper, "seed", lambda self, step: real(self, step + 10_000))
    other = one_rank(tmp_path / "other", **kwargs)
    assert 0 < distance(one, two) < 2 * distance(one, other)


@pytest.mark.long
def test_a_rank_killed_in_mid_epoch_ends_all_then_goes_on(tmp_path, monkeypatch, whole):
    monkeypatch.setenv("STANDIN_KILL", "1,1,5")
    started = time.monotonic()
    with pytest.raises(RankFailedError, match=r"^Rank 1 of 2 failed \(it was killed by SIGKILL\).*rank_1\.log"):
        two_ranks(tmp_path, **CHAOS)
    assert time.monotonic() - started < 30
    assert not ranks_of(tmp_path)
    assert next(iter(checkpoint.step_files(tmp_path))) in (14, 16)
    assert_same(whole, two_ranks(tmp_path, **CHAOS))


def start_command(directory, **values):
    """The typed command, as a process of its own."""
    code = (
        "import sys; from pathlib import Path; from tests.helpers import standin; "
        "from bhive_mltf.ranks.launcher import LocalRanks; from bhive_mltf.training.launch import launch; "
        "launch(standin.TrainingPlan.read(sys.argv[1]), LocalRanks(standin.COMMAND))"
    )
    made = plan(directory, ranks_per_node=2, **values)
    directory.mkdir()
    path = made.write()
    return subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.long
def test_no_rank_survives_the_command_and_it_goes_on(tmp_path, monkeypatch, whole):
    monkeypatch.setenv("STANDIN_SLEEP", "0.2")
    directory = tmp_path / "a"
    command = start_command(directory, **CHAOS)
    wait_for(lambda: 4 in checkpoint.step_files(directory), 240)
    # two ranks and a loader worker each, which is a fork of its rank
    assert len(ranks_of(directory)) >= 4
    command.kill()
    wait_for(lambda: not ranks_of(directory), 60)
    command.communicate()
    assert not checkpoint.epoch_files(directory)
    monkeypatch.setenv("STANDIN_SLEEP", "0")
    assert_same(whole, two_ranks(directory, **CHAOS))


@pytest.mark.long
def test_a_command_asked_to_stop_saves_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_SLEEP", "0.05")
    directory = tmp_path / "a"
    command = start_command(directory, epochs=50, n_threads=1)
    wait_for(lambda: (directory / "model_0.pt").is_file(), 240)
    command.send_signal(signal.SIGTERM)
    _, errors = command.communicate(timeout=25)
    assert command.returncode == 1
    assert b"TrainingInterruptedError" in errors
    assert b"stopped by SIGTERM" in errors
    assert b"terminate called" not in errors
    steps = list(checkpoint.step_files(directory))
    epochs = list(checkpoint.epoch_files(directory))
    assert steps
    assert steps[0] >= 11 * (epochs[0] + 1)


@pytest.mark.long
def test_an_error_in_a_rank_is_one_sentence(tmp_path):
    with pytest.raises(RankFailedError, match=r"Rank \d of 2 failed \(CheckpointError: the weights in") as caught:
        two_ranks(tmp_path, start_from="nowhere.pt")
    assert "\n" not in str(caught.value)
    assert "error.json" in str(caught.value)
    assert not (tmp_path / "model_0.pt").exists()


@pytest.mark.long
@pytest.mark.parametrize("how", ["raise", "hang"])
def test_a_failing_rank_is_named_with_its_traceback(tmp_path, monkeypatch, how):
    monkeypatch.setenv("STANDIN_KILL", "1,0,3")
    monkeypatch.setenv("STANDIN_HOW", how)
    monkeypatch.setenv(TIMEOUT_VARIABLE, "4")
    monkeypatch.setattr(launcher, "SHUTDOWN_SECONDS", 1)
    with pytest.raises(RankFailedError) as caught:
        two_ranks(tmp_path)
    first, *rest = str(caught.value).splitlines()
    if how == "raise":
        assert first.startswith("Rank 1 of 2 failed (HauntedError: a ghost); its traceback is in")
        assert any("in strike" in line for line in rest)
        assert rest[-1].strip().endswith("HauntedError: a ghost")
        # once: the other rank only lost it
        assert str(caught.value).count("Traceback") <= 1
    else:
        assert first.startswith("Rank 1 of 2 failed (it stopped answering)")
    assert not ranks_of(tmp_path)


def test_the_limit_of_waiting_is_a_number(monkeypatch):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "soon")
    with pytest.raises(ParameterError, match="BHIVE_MLTF_RANK_TIMEOUT is 'soon'"):
        wait_limit()


@pytest.mark.long
def test_other_numbers_of_ranks_continue_the_same_batches(tmp_path):
    kwargs = {"training_precision": "float64", "checkpoint_steps": 4, "keep_checkpoints": 9}
    whole = one_rank(tmp_path / "whole", **kwargs)
    cut = tmp_path / "cut"
    one_rank(cut, **kwargs)
    later = [*checkpoint.epoch_files(cut).values(), cut / "best_model.pt"]
    for path in [*later, *(path for step, path in checkpoint.step_files(cut).items() if step > 4)]:
        path.unlink()
    mixed = two_ranks(cut, **kwargs)
    assert (mixed["world_size"], whole["world_size"]) == (2, 1)
    for key, value in whole["model_state_dict"].items():
        torch.testing.assert_close(value, mixed["model_state_dict"][key], rtol=1e-8, atol=1e-10)
    for name in ("loss_train", "acc_train", "loss_val", "acc_val"):
        np.testing.assert_allclose(mixed["histories"][name], whole["histories"][name], rtol=1e-9, atol=0)


def test_several_nodes_need_a_batch_system(tmp_path):
    with pytest.raises(ParameterError, match="nodes is 2"):
        launch(plan(tmp_path, nodes=2))


@pytest.mark.long
def test_a_rank_by_hand(tmp_path):
    made = plan(tmp_path, epochs=1)
    made.write()
    alone = subprocess.run([*COMMAND, made.path], capture_output=True, text=True, timeout=60)
    assert alone.returncode == 0, alone.stderr
    assert "epoch 1/1: loss" in alone.stdout
    assert "\x1b" not in alone.stdout
    assert (tmp_path / "model_0.pt").is_file()
    wrong = subprocess.run(
        [sys.executable, "-m", "bhive_mltf.training"], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert wrong.returncode == 2
    missing = subprocess.run([*COMMAND, Path(tmp_path, "no.json")], capture_output=True, text=True, timeout=60)
    assert missing.returncode == 1
    assert "no.json cannot be read" in missing.stderr
    assert "Traceback" not in missing.stderr
