import errno
import logging
import math
import os

import pytest
import torch

from bhive_mltf.errors import CheckpointError
from bhive_mltf.training.checkpointing import checkpoint, restart
from bhive_mltf.training.checkpointing.checkpoint import epoch_path, find_latest, step_path


def state(global_step, epoch=0, complete=False, **more):
    return {
        "model_state_dict": {"w": torch.arange(1000.0)},
        "optimizer_state_dict": {},
        "epoch": epoch,
        "epoch_complete": complete,
        "global_step": global_step,
        "epoch_sums": torch.zeros(1, 3),
        "histories": {
            name: [1.0] for name in ("loss_train", "acc_train", "loss_val", "acc_val", "train_time", "val_time")
        },
        "best_epoch": 0,
        "best_loss_val": math.inf,
        **more,
    }


def damage(path):
    content = bytearray(path.read_bytes())
    # a flipped bit in the middle of the weights, which torch itself does not notice
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_comes_back_as_plain_values(tmp_path):
    path = step_path(tmp_path, 42)
    assert path.name == "step_000000042.pt"
    checkpoint.write_checkpoint(path, state(42))
    back = checkpoint.read_checkpoint(path)
    assert back["global_step"] == 42
    assert torch.equal(back["model_state_dict"]["w"], torch.arange(1000.0))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_one_furthest_on_is_found(tmp_path):
    assert find_latest(tmp_path) is None
    checkpoint.write_checkpoint(step_path(tmp_path, 5), state(5))
    assert find_latest(tmp_path)[1]["global_step"] == 5
    checkpoint.write_checkpoint(epoch_path(tmp_path, 0), state(9, complete=True))
    checkpoint.write_checkpoint(step_path(tmp_path, 9), state(9))
    assert find_latest(tmp_path)[0].name == "model_0.pt"
    checkpoint.write_checkpoint(epoch_path(tmp_path, 10), state(99, epoch=10, complete=True))
    checkpoint.write_checkpoint(epoch_path(tmp_path, 9), state(90, epoch=9, complete=True))
    assert find_latest(tmp_path)[0].name == "model_10.pt"
    checkpoint.write_checkpoint(step_path(tmp_path, 100), state(100, epoch=11))
    assert find_latest(tmp_path)[0].name == "step_000000100.pt"


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize("harm", [damage, cut, lambda path: path.write_bytes(b"")])
def test_a_damaged_one_is_skipped_with_a_warning(tmp_path, caplog, harm):
    for step in (3, 6):
        checkpoint.write_checkpoint(step_path(tmp_path, step), state(step))
    harm(step_path(tmp_path, 6))
    with caplog.at_level(logging.WARNING):
        assert find_latest(tmp_path)[1]["global_step"] == 3
    assert "step_000000006.pt" in caplog.text
    assert "skipped" in caplog.text


def test_foreign_files_are_no_checkpoints(tmp_path):
    torch.save({"model_state_dict": {}}, tmp_path / "model_0.pt")
    with pytest.raises(CheckpointError, match="lacks optimizer_state_dict"):
        checkpoint.read_checkpoint(tmp_path / "model_0.pt")
    (tmp_path / "model_best.pt").touch()
    assert find_latest(tmp_path) is None


def test_w19_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    path = step_path(tmp_path, 1)
    checkpoint.write_checkpoint(path, state(1))

    def full(content, target):
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.write_checkpoint(path, state(2))
    assert checkpoint.read_checkpoint(path)["global_step"] == 1
    assert len(list(path.parent.iterdir())) == 1


def test_old_step_checkpoints_go(tmp_path):
    for step in range(1, 6):
        checkpoint.write_checkpoint(step_path(tmp_path, step), state(step))
    checkpoint.prune_steps(tmp_path, keep=2)
    assert list(checkpoint.step_files(tmp_path)) == [5, 4]


def test_another_training_is_refused_by_name(tmp_path):
    identity = {
        "config_digest": "a",
        "dataset_digest": "b",
        "val_dataset_digest": "",
        "model_name": "M",
        "model_kwargs": {},
        "classes": [["b", ["isB"]]],
        "inputs": {"columns": ("x",)},
        "settings": {"batch_size": 10, "seed": 1},
    }
    checkpoint.check_identity(tmp_path, identity, identity)
    changes = {
        "config_digest": "z",
        "dataset_digest": "z",
        "val_dataset_digest": "z",
        "model_name": "N",
        "model_kwargs": {"width": 3},
        "classes": [["b", ["isBB"]]],
        "inputs": {"columns": ("y",)},
    }
    for key, value in changes.items():
        with pytest.raises(CheckpointError, match=key):
            checkpoint.check_identity(tmp_path, identity, {**identity, key: value})
    with pytest.raises(CheckpointError, match=r"settings\.seed = 1, this training has 2"):
        checkpoint.check_identity(tmp_path, identity, {**identity, "settings": {"batch_size": 10, "seed": 2}})


def trained(directory, epochs, best):
    for t in range(epochs):
        checkpoint.write_checkpoint(
            epoch_path(directory, t), state(t + 1, epoch=t, complete=True, best_epoch=min(t, best))
        )
    checkpoint.write_checkpoint(step_path(directory, epochs), state(epochs))
    checkpoint.write_checkpoint(directory / "best_model.pt", state(best + 1, epoch=best, complete=True))
    (directory / "run.json").touch()


def test_resume_epoch_sets_later_epochs_aside(tmp_path):
    trained(tmp_path, epochs=4, best=3)
    folder = restart.resume_epoch(tmp_path, 2)
    assert sorted(p.name for p in folder.iterdir()) == ["best_model.pt", "checkpoints", "model_2.pt", "model_3.pt"]
    assert find_latest(tmp_path)[0].name == "model_1.pt"
    assert checkpoint.read_checkpoint(tmp_path / "best_model.pt")["epoch"] == 1
    with pytest.raises(CheckpointError, match="resume_epoch 4 needs model_3.pt .* which has the epochs 0, 1: resume"):
        restart.resume_epoch(tmp_path, 4)


def test_restart_sets_everything_of_the_training_aside(tmp_path):
    assert restart.restart(tmp_path) is None
    trained(tmp_path, epochs=2, best=0)
    first = restart.restart(tmp_path)
    assert find_latest(tmp_path) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["aside", "run.json"]
    trained(tmp_path, epochs=1, best=0)
    second = restart.restart(tmp_path)
    assert (first.name, second.name) == ("1", "2")
    assert (first / "model_1.pt").is_file()


@pytest.mark.parametrize(("number", "skipped"), [(errno.EIO, True), (errno.ESTALE, False), (errno.EMFILE, False)])
def test_a_checkpoint_is_skipped_for_its_own_fault_only(tmp_path, monkeypatch, number, skipped):
    trained(tmp_path, epochs=2, best=1)
    open_zip = checkpoint.zipfile.ZipFile

    def fail(path):
        if path.name == "model_1.pt":
            raise OSError(number, os.strerror(number))
        return open_zip(path)

    monkeypatch.setattr(checkpoint.zipfile, "ZipFile", fail)
    if skipped:
        assert find_latest(tmp_path)[0].name != "model_1.pt"
    else:
        with pytest.raises(CheckpointError, match=f"model_1.pt cannot be read: {os.strerror(number)}$"):
            find_latest(tmp_path)
