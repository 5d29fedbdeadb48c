"""The typed command killed in mid-epoch: no rank outlives it, and typed again it ends as if nothing had happened."""

import os
import random
import signal
import time

import psutil
import pytest
import torch

from tests.helpers.commands import flat


def ranks_of(directory):
    """Processes that train in this directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if "bhive_mltf.training" in line and str(directory) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def options(btag_options):
    """Two ranks, a checkpoint every three steps."""
    return [
        *flat({**btag_options, "--batch-size": 32, "--epochs": 2}),
        "--ranks-per-node", 2, "--checkpoint-steps", 3, "--tracking", False, "--loss-weighting", True,
    ]  # fmt: skip


@pytest.mark.long
def test_w19_a_killed_command_leaves_no_rank_and_continues(sandbox, options):
    folder = sandbox.data_path / "TrainingTask/offline_run3/v1"
    sandbox.run("TrainingTask", *options)

    cut = ["--training-version", "cut"]
    directory = folder / "cut/DeepJet/epochs_2/nominal"
    command = sandbox.start("TrainingTask", *options, *cut)
    try:
        steps = directory / "checkpoints"
        assert wait_for(lambda: len(list(steps.glob("step_*.pt"))) > 1, 60), "no two checkpoints in a minute"
        os.kill(command.pid, signal.SIGKILL)
        assert wait_for(lambda: not ranks_of(directory), 10), "a rank outlived the command by ten seconds"
    finally:
        command.kill()
        command.communicate()
    assert not (directory / "model_1.pt").exists()

    newest = max(steps.glob("step_*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    output = " ".join(sandbox.run("TrainingTask", *options, *cut).split())
    assert newest.name in output
    assert "it is skipped, and the one before it taken" in output
    whole, continued = (
        torch.load(folder / version / "DeepJet/epochs_2/nominal/best_model.pt", weights_only=False)
        for version in ("t1", "cut")
    )
    assert whole["epoch"] == continued["epoch"]
    for name, value in whole["model_state_dict"].items():
        assert torch.equal(value, continued["model_state_dict"][name]), name
    assert whole["loss_val"] == continued["loss_val"]


@pytest.mark.long
def test_a_killed_rank_is_named_and_the_command_typed_again(sandbox, options):
    directory = sandbox.data_path / "TrainingTask/offline_run3/v1/t1/DeepJet/epochs_2/nominal"
    command = sandbox.start("TrainingTask", *options)
    try:
        assert wait_for(lambda: list(directory.glob("checkpoints/step_*.pt")), 200), "no checkpoint"
        (second,) = [rank for rank in ranks_of(directory) if rank.environ().get("RANK") == "1"]
        second.kill()
        output = command.communicate(timeout=60)[0]
    finally:
        command.kill()
    assert command.returncode != 0
    assert "Rank 1 of 2 failed (it was killed by SIGKILL)" in " ".join(output.split())
    assert "Traceback" not in output
    assert not ranks_of(directory)
    # and may do so on another number of ranks
    output = sandbox.run("TrainingTask", *options, "--ranks-per-node", 1)
    assert "from epoch 1, step" in " ".join(output.split())
    assert "ranks 1 instead of 2" in " ".join(output.split())


def steps_saved(directory):
    """Number of the last step with a checkpoint."""
    return max((int(path.stem.removeprefix("step_")) for path in directory.glob("checkpoints/step_*.pt")), default=0)


@pytest.mark.nightly
def test_w19_ten_killed_ranks_of_four_change_no_bit(sandbox, options):
    options = [*options, "--ranks-per-node", 4, "--checkpoint-steps", 1]
    whole, directory = (
        sandbox.data_path / "TrainingTask/offline_run3/v1" / version / "DeepJet/epochs_2/nominal"
        for version in ("t1", "cut")
    )
    sandbox.run("TrainingTask", *options)
    options += ["--training-version", "cut"]
    chaos = random.Random(time.time_ns())
    for step in sorted(chaos.sample(range(1, 40), 10)):
        number, least = chaos.randrange(4), max(step, steps_saved(directory) + 1)
        command = sandbox.start("TrainingTask", *options)
        try:
            assert wait_for(lambda least=least: steps_saved(directory) >= least, 200), command.poll()
            (rank,) = [rank for rank in ranks_of(directory) if rank.environ().get("RANK") == str(number)]
            time.sleep(chaos.uniform(0, 0.05))
            rank.kill()
            output = " ".join(command.communicate(timeout=60)[0].split())
        finally:
            command.kill()
        assert f"Rank {number} of 4 failed (it was killed by SIGKILL)" in output
    assert not (directory / "model_1.pt").exists()
    sandbox.run("TrainingTask", *options)
    for name in ("model_1.pt", "best_model.pt"):
        one, two = (torch.load(folder / name, weights_only=False) for folder in (whole, directory))
        assert one["histories"]["loss_val"] == two["histories"]["loss_val"]
        for key, value in one["model_state_dict"].items():
            assert torch.equal(value, two["model_state_dict"][key]), key
