"""The GPUs of this process, as the driver tells them; torch only where a number of ranks is left open."""

from __future__ import annotations

from collections.abc import Mapping


def count_gpus(environment: Mapping[str, str]) -> int:
    """GPUs that this job may use here: those of `CUDA_VISIBLE_DEVICES`, as far as the driver has them.

    Slices of a GPU (MIG) are taken at their word: a driver counts whole GPUs.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    given = [name for name in (named or "").split(",") if name.strip()]
    try:
        import pynvml

        pynvml.nvmlInit()
        there = int(pynvml.nvmlDeviceGetCount())
    except Exception:  # noqa: BLE001 - no driver, or one that does not answer
        return 0
    if there and any(name.startswith("MIG-") for name in given):
        return len(given)
    return min(len(given), there) if given else there


def ranks_here(asked: int) -> int:
    """Ranks to start on this machine: as many as asked for; 0: one per GPU that torch sees, else one."""
    if asked > 0:
        return asked
    import torch

    return max(torch.cuda.device_count(), 1)
