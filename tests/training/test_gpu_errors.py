"""Failures of GPUs are told right: memory, driver, card."""

import pytest
import torch

from bhive_mltf.errors import TrainingError
from bhive_mltf.ranks.distributed import World
from bhive_mltf.ranks.gpu_errors import explain, is_bad_node, out_of_memory
from bhive_mltf.training.engine import train
from bhive_mltf.training.monitoring.observers import Observer
from tests.helpers import standin
from tests.helpers.standin import plan


def test_memory_that_is_not_enough_is_an_error_of_the_user(tmp_path):
    """Not one of the node: a job would be put back into the queue again and again."""

    def build(own, world):
        parts = standin.build(own, world)

        def forward(batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        parts.model.forward = forward
        return parts

    expected = "no memory left for batch_size 25, 25 jets per rank: take a smaller --batch-size"
    with pytest.raises(TrainingError, match=expected):
        train(plan(tmp_path), World(), build, Observer())


def test_the_peak_is_told_where_it_is_known():
    assert "1000, 334 jets per rank, after a peak of 46.2 GB: take" in out_of_memory(1000, 3, 46.21)


@pytest.mark.parametrize(
    ("message", "is_node", "sentence"),
    [
        ("CUDA error: uncorrectable ECC error encountered\nmore", True, "a GPU of this node failed (CUDA error: unc"),
        ("CUDA error: unspecified launch failure", True, "exclude the node and submit again"),
        ("The NVIDIA driver on your system is too old (found version 11040)", False, "too old for this torch"),
        ("mat1 and mat2 shapes cannot be multiplied", False, None),
    ],
)
def test_what_a_message_of_cuda_means(message, is_node, sentence):
    error = RuntimeError(message)
    assert is_bad_node(error) == is_node
    assert (explain(error) is None) if sentence is None else (sentence in explain(error))
