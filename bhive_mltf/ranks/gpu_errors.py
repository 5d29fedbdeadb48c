"""What an error of a GPU means, as one sentence, and whether the node or the training is to blame."""

from __future__ import annotations

import re
from enum import StrEnum


class GpuCause(StrEnum):
    """What is wrong with a GPU; the values are written in error files of ranks."""

    OUT_OF_MEMORY = "out_of_memory"  # no other node would do better
    OLD_DRIVER = "old_driver"
    UNKNOWN_CARD = "unknown_card"  # torch is not built for it
    BAD_INDEX = "bad_index"  # of a program or its data, on any node
    BAD_NODE = "bad_node"  # the card or its link failed, another node may do


# Of CUDA's driver and runtime, and of cuBLAS and NCCL, which allocate on their own.
_WORDS = {
    GpuCause.OLD_DRIVER: r"driver on your system is too old|cuda driver version is insufficient",
    GpuCause.UNKNOWN_CARD: r"no kernel image is available",
    GpuCause.BAD_INDEX: r"device-side assert",
    GpuCause.BAD_NODE: (
        r"uncorrectable ecc error|unspecified launch failure|\bxid\b|device unavailable|nvlink error|"
        r"the launch timed out|gpu is lost|all cuda-capable devices are busy|no cuda-capable device|"
        r"no cuda gpus are available|found no nvidia driver"
    ),
    GpuCause.OUT_OF_MEMORY: r"cuda out of memory|cuda error: out of memory|cublas_status_alloc_failed|cuda failure 2\b",
}
# What to say; {} stands for the first line of the error.
_SENTENCES = {
    GpuCause.OLD_DRIVER: (
        "the driver of this node's GPUs is too old for this torch: take another node, or a torch for that driver"
    ),
    GpuCause.UNKNOWN_CARD: "torch has no kernels for the GPUs of this node ({}): install one that is built for them",
    GpuCause.BAD_INDEX: (
        "a GPU met an index out of its range ({}): with CUDA_LAUNCH_BLOCKING=1 the traceback shows where"
    ),
    GpuCause.BAD_NODE: "a GPU of this node failed ({}): exclude the node and submit again",
    GpuCause.OUT_OF_MEMORY: "the GPU has no memory left ({}): take a smaller --batch-size",
}


def out_of_memory(batch_size: int, ranks: int, peak_gb: float | None = None) -> str:
    """The sentence for a GPU without memory left; no other node would do better.

    batch_size : of the global batch, which `ranks` share. peak_gb : the most that tensors took so far.
    """
    peak = f", after a peak of {peak_gb:.1f} GB" if peak_gb is not None else ""
    return (
        f"the GPU has no memory left for batch_size {batch_size}, {-(-batch_size // ranks)} jets per rank{peak}: take "
        "a smaller --batch-size, more ranks, or --training-precision bf16"
    )


def cause_of(error: BaseException) -> GpuCause | None:
    """What is wrong with the card or its driver; None for another error, those that are no RuntimeError among them."""
    if not isinstance(error, RuntimeError):
        return None
    text = str(error).lower()
    return next((cause for cause, words in _WORDS.items() if re.search(words, text)), None)


def explain(error: BaseException) -> str:
    """One sentence for an error of a card or its driver, empty for another error."""
    cause = cause_of(error)
    return "" if cause is None else _SENTENCES[cause].format(str(error).strip().splitlines()[0])
