"""Four ranks, a random one killed at a random moment, ten times in one training; the same command each time."""

import random
import time

import pytest
import torch

from bhive_mltf.errors import RankFailedError
from bhive_mltf.ranks.launcher import LocalRanks
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.launch import launch
from tests.helpers.standin import COMMAND, plan

KILLS, EPOCHS, STEPS_PER_EPOCH = 10, 4, 11
TRAINING = {
    "epochs": EPOCHS,
    "model_kwargs": {"dropout": 0.3},
    "optimizer": "NAdam",
    "lr_scheduler": "batch_lin_decay",
    "checkpoint_steps": 1,
    "ranks_per_node": 4,
}


def run(directory, n_threads=0):
    launch(plan(directory, n_threads=n_threads, **TRAINING), LocalRanks(COMMAND))


def moments(chaos):
    """(rank, step, delay in seconds): increasing steps with at least two between them, each in another process."""
    steps = sorted(chaos.sample(range(EPOCHS * STEPS_PER_EPOCH - 2 * KILLS), KILLS))
    return [(chaos.randrange(4), step + 2 * number, chaos.uniform(0, 0.02)) for number, step in enumerate(steps)]


@pytest.mark.long
def test_w19_ten_kills_change_no_bit(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    chaos, cut = random.Random(time.time_ns()), tmp_path / "cut"
    killed = 0
    for number, (rank, step, delay) in enumerate(moments(chaos)):
        epoch, batch = divmod(step, STEPS_PER_EPOCH)
        monkeypatch.setenv("STANDIN_KILL", f"{rank},{epoch},{batch}")
        monkeypatch.setenv("STANDIN_DELAY", str(delay))
        # the number of loader workers may change from command to command
        with pytest.raises(RankFailedError, match=f"Rank {rank} of 4 failed .it was killed by SIGKILL"):
            run(cut, n_threads=number % 3)
        killed += 1
    assert killed == KILLS
    assert not (cut / f"model_{EPOCHS - 1}.pt").exists()
    monkeypatch.delenv("STANDIN_KILL")
    run(cut)
    for name in (f"model_{EPOCHS - 1}.pt", "best_model.pt"):
        whole, mended = (checkpoint.read_checkpoint(folder / name) for folder in (tmp_path / "whole", cut))
        for key, value in whole["model_state_dict"].items():
            assert torch.equal(value, mended["model_state_dict"][key]), key
        for history in ("loss_train", "acc_train", "loss_val", "acc_val"):
            assert whole["histories"][history] == mended["histories"][history]
