"""What an error of a GPU means, as one sentence, and whether the node or the training is to blame."""

from __future__ import annotations

# Of CUDA's driver and runtime: the card or its link is bad, another node may do.
_BAD_NODE = (
    *("uncorrectable ecc error", "unspecified launch failure", "xid", "device unavailable", "nvlink error"),
    *("the launch timed out", "gpu is lost", "all cuda-capable devices are busy"),
)
_OLD_DRIVER = ("driver on your system is too old", "cuda driver version is insufficient")


def out_of_memory(batch_size: int, ranks: int, peak_gb: float | None = None) -> str:
    """The sentence for a GPU without memory left; no other node would do better.

    batch_size : of the global batch, which `ranks` share. peak_gb : the most that tensors took so far.
    """
    peak = f", after a peak of {peak_gb:.1f} GB" if peak_gb is not None else ""
    return (
        f"the GPU has no memory left for batch_size {batch_size}, {-(-batch_size // ranks)} jets per rank{peak}: take "
        "a smaller --batch-size, more ranks, or --training-precision bf16"
    )


def is_bad_node(error: BaseException) -> bool:
    """Whether the card failed, not the training: another node may do."""
    text = str(error).lower()
    return any(words in text for words in _BAD_NODE)


def explain(error: BaseException) -> str | None:
    """One sentence for an error of a card or its driver, None for another error."""
    if any(words in str(error).lower() for words in _OLD_DRIVER):
        return "the driver of this node's GPUs is too old for this torch: take another node, or a torch for that driver"
    if is_bad_node(error):
        return f"a GPU of this node failed ({str(error).splitlines()[0]}): exclude the node and submit again"
    return None
