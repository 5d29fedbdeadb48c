"""Failures of GPUs are told right: memory, driver, card."""

import pytest
import torch

from bhive_mltf.errors import TrainingError
from bhive_mltf.ranks.distributed import World
from bhive_mltf.ranks.files import RankError, error_path
from bhive_mltf.ranks.gpu_errors import GpuCause, cause_of, explain, out_of_memory
from bhive_mltf.ranks.process import run_reporting
from bhive_mltf.training.engine import train
from bhive_mltf.training.monitoring.observers import Observer
from tests.helpers import standin
from tests.helpers.standin import plan


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_is_not_enough_is_an_error_of_the_user(tmp_path, error):
    """Not one of the node: a job would be put back into the queue again and again."""

    def build(own, world):
        parts = standin.build(own, world)

        def forward(batch):
            raise error

        parts.model.forward = forward
        return parts

    expected = "no memory left for batch_size 25, 25 jets per rank: take a smaller --batch-size"
    with pytest.raises(TrainingError, match=expected):
        train(plan(tmp_path), World(), build, Observer())


def test_the_peak_is_told_where_it_is_known():
    assert "1000, 334 jets per rank, after a peak of 46.2 GB: take" in out_of_memory(1000, 3, 46.21)


@pytest.mark.parametrize(
    ("message", "cause", "sentence"),
    [
        ("CUDA error: uncorrectable ECC error encountered\nmore", GpuCause.BAD_NODE, "failed (CUDA error: unc"),
        ("CUDA error: unspecified launch failure", GpuCause.BAD_NODE, "exclude the node and submit again"),
        ("NVRM: Xid (PCI:0000:3b:00): 79", GpuCause.BAD_NODE, "a GPU of this node failed"),
        ("The NVIDIA driver on your system is too old (found version 11040)", GpuCause.OLD_DRIVER, "too old for this"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", GpuCause.OUT_OF_MEMORY, "take a smaller --batch-size"),
        ("CUDA error: no kernel image is available for execution", GpuCause.UNKNOWN_CARD, "no kernels for the GPUs"),
        ("CUDA error: device-side assert triggered", GpuCause.BAD_INDEX, "CUDA_LAUNCH_BLOCKING=1 the traceback"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when", GpuCause.OUT_OF_MEMORY, "no memory left"),
        ("mat1 and mat2 shapes cannot be multiplied", None, ""),
        ("there is no column taxid", None, ""),
    ],
)
def test_what_a_message_of_cuda_means(message, cause, sentence):
    error = RuntimeError(message)
    assert cause_of(error) == cause
    assert sentence in explain(error)
    assert bool(explain(error)) == bool(cause)


def test_only_errors_of_torch_are_of_a_gpu():
    assert cause_of(KeyError("xid")) is None
    assert cause_of(torch.OutOfMemoryError("CUDA out of memory.")) is GpuCause.OUT_OF_MEMORY


def test_the_error_file_of_a_rank_tells_cause_and_node(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")

    def work():
        # NCCL's words alone would say that another rank was lost
        raise RuntimeError("NCCL error: unhandled cuda error, uncorrectable ECC error encountered")

    assert run_reporting(tmp_path, work) == 1
    reason = RankError.read(tmp_path, 0)
    assert (reason.cause, reason.node, reason.lost) == (GpuCause.BAD_NODE, "n7", False)
    assert reason.explanation.startswith("a GPU of this node failed (NCCL error")
    assert reason.explanation in caplog.text


def test_an_error_file_without_cause_is_read(tmp_path):
    path = error_path(tmp_path, 0)
    path.parent.mkdir()
    path.write_text('{"rank": 0, "time": 1.0, "kind": "KeyError", "message": "x", "lost": false, "traceback": "t"}')
    assert RankError.read(tmp_path, 0) == RankError(0, 1.0, "KeyError", "x", traceback="t")
