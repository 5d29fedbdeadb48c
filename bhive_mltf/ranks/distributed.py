"""The process group: rank and device of this process, and its collectives.

Gloo on a CPU, NCCL on CUDA (gloo beside it for what lives on the host). Sums over ranks are made in float64,
in the order of the ranks.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bhive_mltf import compat
from bhive_mltf.errors import ParameterError
from bhive_mltf.ranks.files import NEEDS_GPU_VARIABLE
from bhive_mltf.ranks.gpus import count_gpus

# How long a rank waits for the others before it fails, in seconds; may be set for slow file systems.
TIMEOUT_VARIABLE = "BHIVE_MLTF_RANK_TIMEOUT"
TIMEOUT = 600.0
MAX_TIMEOUT = 1e7
CPU = torch.device("cpu")
# With which a user sets up CUDA's allocator; torch 2.9 renamed it, and reads it when it is loaded.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """Where a process stands among the ranks of a training.

    rank, size : global rank and number of ranks; decide data and who writes.
    local_rank : picks the device, nothing else.
    host_group : gloo, for numbers on the host; None for one rank.
    norm_group : of the batch norms, whose messages must not mix with those of gradients; None for one rank.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = CPU
    host_group: dist.ProcessGroup | None = None
    norm_group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Global rank 0, the one that writes."""
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """`values` of all ranks, [W, ...] on the host, in the order of the ranks."""
        own = values.detach().cpu()
        if self.size == 1:
            return own[None]
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(gathered, own, group=self.host_group)
        return torch.stack(gathered)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values` over the ranks, float64, on the host."""
        return self.gather(values.double()).sum(0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier(group=self.host_group)


def pick_device(local_rank: int) -> torch.device:
    """The accelerator of this local rank, from now on the current one of this thread; the CPU when there is none.

    Raises
    ------
    ParameterError
        There are fewer GPUs than local ranks, or torch is built without CUDA in a job that has GPUs.
    RuntimeError
        Torch's own, in a job whose GPUs it cannot use: see `gpu_errors`.
    """
    if not torch.cuda.is_available():
        _without_gpu(local_rank)
        return CPU
    count = torch.cuda.device_count()
    # SLURM may show each task a GPU of its own; that no two have the same one is looked at when ranks meet
    number = 0 if count == 1 and "SLURM_STEP_ID" in os.environ else local_rank
    if number >= count:
        raise ParameterError(
            f"ranks_per_node asks for local rank {local_rank}, but this node has {count} visible GPUs: "
            f"take at most {count} ranks per node"
        )
    if not any(name in os.environ for name in _ALLOCATOR):
        # batches differ in size from step to step: CUDA's memory would fall into pieces
        compat.set_cuda_allocator("expandable_segments:True")
    # events, pinned memory and NCCL go by the current device, not by where tensors are
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _without_gpu(local_rank: int) -> None:
    """Refuse a processor where a job has GPUs, warn of one where the node has some."""
    if os.environ.get(NEEDS_GPU_VARIABLE):
        if torch.version.cuda is None:
            raise ParameterError(
                f"the job has GPUs, but torch {torch.__version__} is built without CUDA: install one that is built for "
                "the driver of the nodes"
            )
        torch.cuda.init()  # type: ignore[no-untyped-call]
        raise RuntimeError("no CUDA-capable device is detected, but the job has GPUs")
    seen = count_gpus(os.environ) if os.environ.get("CUDA_VISIBLE_DEVICES") != "" else 0
    if seen and local_rank == 0:
        logger.warning(
            "this node has %d GPUs that torch %s cannot use, so its processors compute: see 'bhive-mltf check'",
            seen,
            torch.__version__,
        )


def backends(device: torch.device) -> tuple[str, str]:
    """Of the gradients, which on CUDA takes what lies on the host too, and of the batch norms."""
    return ("cpu:gloo,cuda:nccl", "nccl") if device.type == "cuda" else ("gloo", "gloo")


def size_from_environment() -> int:
    """Number of ranks that the launcher of this process set; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_limit() -> timedelta:
    """How long a rank waits for the others; ParameterError if what the environment says is no number above 0."""
    given = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < MAX_TIMEOUT:
        raise ParameterError(f"{TIMEOUT_VARIABLE} is '{given}', but must be a number of seconds above 0")
    return timedelta(seconds=seconds)


@contextmanager
def join_world() -> Iterator[World]:
    """Join the ranks named by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; alone without them.

    The process group is taken down on success only: after an error the other ranks may be gone, and waiting
    for them would take until the timeout. The process then has to end.
    """
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    size = size_from_environment()
    device = pick_device(local_rank)
    if size == 1:
        yield World(device=device)
        return
    timeout = wait_limit()
    backend, norm_backend = backends(device)
    if device.type == "cuda":
        # loader workers are forked beside NCCL's connections
        os.environ.setdefault("RDMAV_FORK_SAFE", "1")
    library: Any = dist  # whose stub leaves these out
    store = library.PrefixStore("bhive_mltf", next(library.rendezvous("env://", timeout=timeout))[0])
    _compare_devices(store, rank, size, device)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    host_group = dist.new_group(backend="gloo", timeout=timeout)
    norm_group = dist.new_group(backend=norm_backend, timeout=timeout)
    yield World(rank, size, local_rank, device, host_group, norm_group)
    dist.barrier(group=host_group)
    dist.destroy_process_group()


def _compare_devices(store: Any, rank: int, size: int, device: torch.device) -> None:  # noqa: ANN401 - a store
    """ParameterError, in all ranks, for devices that cannot work together: NCCL would wait for its time-out."""
    name = f"GPU {torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else "processor"
    store.set(f"device/{rank}", f"{name} of {socket.gethostname()}")
    problem = conflict([store.get(f"device/{other}").decode() for other in range(size)])
    if problem:
        raise ParameterError(problem)


def conflict(devices: Sequence[str]) -> str:
    """What is wrong with the devices of the ranks, `GPU <uuid> of <host>` or `processor of <host>`; empty if nothing.

    GPUs beside processors, or two ranks on one GPU.
    """
    kinds = [device.split()[0] for device in devices]
    for rank, (device, kind) in enumerate(zip(devices, kinds, strict=True)):
        if kind != kinds[0]:
            return f"rank 0 computes on a {devices[0]}, but rank {rank} on a {device}: give all ranks a GPU, or none"
        first = devices.index(device)
        if kind == "GPU" and first != rank:
            return f"ranks {first} and {rank} both have the {device}: take fewer ranks per node, or give each a GPU"
    return ""


def set_threads(threads_per_rank: int, world: World) -> None:
    """Compute threads of this rank; 0: one on a CPU with several ranks, else torch's choice."""
    if threads_per_rank > 0:
        torch.set_num_threads(threads_per_rank)
    elif world.size > 1 and world.device.type == "cpu":
        torch.set_num_threads(1)
