"""Upstream's own task with the mixins: the lines of the merge kit on a stand-in of its layout."""

import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers.waiting import wait_for
from tests.upstream_layout.edits import write_layout
from tests.upstream_layout.trainings import Layout, write_set

METRICS = {"Training Loss", "Training Accuracy", "Validation Loss", "Validation Accuracy"}


@pytest.fixture
def layout(tmp_path):
    """A checkout with some patches, whose outputs have a training set."""

    def make(*patches, name="layout"):
        data_path = tmp_path / f"output_{name}"
        write_set(data_path)
        return Layout(write_layout(tmp_path / name, *patches), data_path)

    return make


def assert_equal(first, second, tolerance=0.0):
    one, other = first.weights(), second.weights()
    assert one.keys() == other.keys()
    assert not any(key.startswith(("module.", "_orig_mod.")) for key in one)
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=tolerance)


def assert_run(layout, status, epochs=3):
    client, run = layout.run()
    assert run.info.status == status
    assert set(run.data.metrics) == METRICS
    for name in METRICS:
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted(point.step for point in history) == list(range(epochs))
    return run


@pytest.mark.long
def test_two_ranks_of_its_own_task_in_one_finished_run(layout):
    patched = layout(0, 1, 2, 3)
    done = patched.train("--ranks-per-node", 2, "--n-threads", 0)
    assert done.returncode == 0, done.stdout
    run = assert_run(patched, "FINISHED")
    assert run.data.params["learning_rate"] == "0.001"
    written = {path.name for path in patched.directory.glob("*.pt")}
    assert written == {"best_model.pt", "model_0.pt", "model_1.pt", "model_2.pt"}


@pytest.mark.long
def test_one_rank_patched_is_unpatched_bit_for_bit(layout):
    plain, patched = layout(name="plain"), layout(0, 1, 2, 3, name="patched")
    for one in (plain, patched):
        done = one.train()
        assert done.returncode == 0, done.stdout
    assert_equal(plain, patched)


@pytest.mark.long
def test_two_ranks_equal_one(layout):
    one, two = layout(0, 3, name="one"), layout(0, 3, name="two")
    for ranks, trained in enumerate((one, two), 1):
        done = trained.train("--ranks-per-node", ranks)
        assert done.returncode == 0, done.stdout
    assert_equal(one, two, tolerance=1e-9)


@pytest.mark.long
def test_workers_of_the_loader_read_their_ranks_rows(layout):
    """Sampled by weight, a validation file of odd length, fewer batches on one rank than on the other."""
    patched = layout(0, 1, 3)
    done = patched.train("--ranks-per-node", 3, "--loss-weighting", "False", "--batch-size", 6, "--n-threads", 2)
    assert done.returncode == 0, done.stdout
    assert_run(patched, "FINISHED")


@pytest.mark.long
@pytest.mark.parametrize(
    ("ghost", "reason"), [("raise,1,0", "RuntimeError: a ghost in epoch 0"), ("kill,0,0", "killed by SIGKILL")]
)
def test_a_failed_rank_ends_all_and_the_next_command_goes_on(layout, ghost, reason):
    patched = layout(0, 1, 3)
    patched.haunt(ghost)
    done = patched.train("--ranks-per-node", 2)
    assert done.returncode != 0
    _, run = patched.run()
    assert run.info.status == "FAILED"
    rank = ghost.split(",")[1]
    assert f"Rank {rank} of 2 failed" in run.data.tags["failure"]
    assert reason in run.data.tags["failure"]
    assert not (patched.directory / "model_1.pt").exists()
    again = patched.train("--ranks-per-node", 2)
    assert again.returncode == 0, again.stdout
    assert "going on with the models in" in again.stdout
    run = assert_run(patched, "FINISHED")
    assert run.data.tags["failure"] == ""


@pytest.mark.long
def test_a_killed_command_leaves_no_rank_and_can_go_on(layout):
    patched = layout(0, 1, 3)
    patched.haunt("stop,1,0")
    command = subprocess.Popen(
        patched.command("--ranks-per-node", 2), env=patched.environment, cwd=patched.tree, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    ghost = patched.data_path / "ghost_was_here"
    wait_for(lambda: ghost.exists() and ghost.read_text(), 120)
    command.send_signal(signal.SIGKILL)
    command.wait()
    wait_for(lambda: not Path(f"/proc/{ghost.read_text()}").exists(), 30)
    again = patched.train("--ranks-per-node", 2)
    assert again.returncode == 0, again.stdout
    assert_run(patched, "FINISHED")


@pytest.mark.long
def test_more_ranks_than_batches_are_refused(layout):
    patched = layout(0, 3)
    done = patched.train("--ranks-per-node", 3, "--batch-size", 93)
    assert done.returncode != 0
    assert "the loader has a batch for 2 of 3 ranks only: take at most 2 ranks" in done.stdout
    uneven = patched.train("--ranks-per-node", 3)
    assert "a batch of 32 jets cannot be dealt evenly to 3 ranks: take a multiple of 3" in uneven.stdout
