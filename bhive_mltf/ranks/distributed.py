"""The process group: rank and device of this process, and its collectives.

Gloo on a CPU, NCCL on CUDA (gloo beside it for what lives on the host). Sums over ranks are made in float64,
in the order of the ranks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from bhive_mltf.errors import ParameterError

# How long a rank waits for the others before it fails, in seconds; may be set for slow file systems.
TIMEOUT_VARIABLE = "BHIVE_MLTF_RANK_TIMEOUT"
TIMEOUT = 600.0
MAX_TIMEOUT = 1e7
CPU = torch.device("cpu")


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
    """The accelerator of this local rank, or the CPU when there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ParameterError(
            f"ranks_per_node asks for local rank {local_rank}, but this node has {count} visible GPUs: "
            f"take at most {count} ranks per node"
        )
    return torch.device("cuda", local_rank)


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
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device=device)
        return
    timeout = wait_limit()
    backend, norm_backend = backends(device)
    dist.init_process_group(backend, timeout=timeout, device_id=device if device.type == "cuda" else None)
    host_group = dist.new_group(backend="gloo", timeout=timeout)
    norm_group = dist.new_group(backend=norm_backend, timeout=timeout)
    yield World(rank, size, local_rank, device, host_group, norm_group)
    dist.barrier(group=host_group)
    dist.destroy_process_group()


def set_threads(threads_per_rank: int, world: World) -> None:
    """Compute threads of this rank; 0: one on a CPU with several ranks, else torch's choice."""
    if threads_per_rank > 0:
        torch.set_num_threads(threads_per_rank)
    elif world.size > 1 and world.device.type == "cpu":
        torch.set_num_threads(1)
