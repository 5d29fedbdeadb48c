"""Case 02: a full disk, a used-up quota or a limit of file sizes is told as such, also by writers in C."""

import errno
import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from bhive_mltf.errors import CheckpointError, DiskError
from bhive_mltf.files import atomic, disk
from bhive_mltf.ranks.files import RankError
from bhive_mltf.ranks.process import run_reporting
from bhive_mltf.ranks.signals import NO_SPACE_EXIT_CODE
from bhive_mltf.tracking import logged_model
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.debugging import nonfinite

WEIGHTS = {"weights": [torch.ones(60_000) for _ in range(5)]}


@contextmanager
def limit(n_bytes):
    """As `ulimit -f`: no file may become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [1000, 100_000, 1_000_000, 1_200_500])
def test_f02_a_checkpoint_that_does_not_fit(tmp_path, n_bytes):
    path = tmp_path / "model_0.pt"
    checkpoint.write_checkpoint(path, {"old": 1})
    before = path.read_bytes()
    with limit(n_bytes), pytest.raises(CheckpointError, match="model_0.pt cannot be written: File too large") as raised:
        checkpoint.write_checkpoint(path, WEIGHTS)
    assert disk.is_out_of_space(raised.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_f02_weights_of_a_step_that_was_not_finite(tmp_path):
    class Stepper:
        model = torch.nn.Linear(500, 500)

    with limit(100_000), disk.writing(tmp_path), pytest.raises(OSError, match="File too large") as raised:
        nonfinite._write_weights(tmp_path / "step_000000001.json", Stepper())
    assert raised.value.filename.endswith("step_000000001.pt")
    assert list(tmp_path.iterdir()) == []


def test_f02_a_model_for_mlflow(tmp_path):
    with (
        limit(100_000),
        pytest.raises(DiskError, match=r"the model '.*/m' cannot be written \(.*no file of that size\)"),
    ):
        logged_model.serialise(torch.nn.Linear(500, 500), tmp_path / "m", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_bytes", [10, 3000])
def test_f02_an_array_that_does_not_fit(tmp_path, n_bytes):
    """numpy writes to files by C, and then says how much is missing but not why."""
    with (
        limit(n_bytes),
        pytest.raises(DiskError, match=r"a.npy' cannot be written \(.*no file of that size\)"),
        disk.writing(tmp_path),
    ):
        atomic.write_array(tmp_path / "a.npy", np.arange(1000.0))
    assert list(tmp_path.iterdir()) == []


def test_f02_errors_of_the_writer_itself_stay(tmp_path):
    with pytest.raises(RuntimeError, match="ours"), atomic.open_replacing(tmp_path / "a.pt"):
        raise RuntimeError("ours")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [10_000, 10])
def test_f02_a_rank_says_so_even_if_its_reason_has_no_room(tmp_path, room):
    def work():
        checkpoint.write_checkpoint(tmp_path / "model_0.pt", WEIGHTS)
        return 0

    with limit(room):
        assert run_reporting(tmp_path, work) == NO_SPACE_EXIT_CODE
    reason = RankError.read(tmp_path, 0)
    if room > 1000:
        assert reason.no_space
        assert reason.by_user
    else:
        assert reason is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_f02_no_space_is_seen_through_other_errors(number):
    try:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise RuntimeError("unexpected pos") from error
    except RuntimeError as error:
        assert disk.is_out_of_space(error)
    assert not disk.is_out_of_space(RuntimeError("x"))
    assert not disk.is_out_of_space(OSError(errno.EIO, "x"))


def test_f12_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DiskError, match=r"file/x' cannot be written \(Not a directory\): "),
        disk.writing(tmp_path, everything=True),
    ):
        (tmp_path / "file" / "x").mkdir()
    with pytest.raises(NotADirectoryError), disk.writing(tmp_path):
        (tmp_path / "file" / "x").mkdir()
