"""Several ranks for a training loop that is not ours: the loop calls four functions, and one rank is left as it is.

The loop keeps its own model, loader, loss and optimiser. `current()` is what a process is to the others, so that code
without a task at hand (a data set, a loader's worker) can ask too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from bhive_mltf.errors import ParameterError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from torch import Tensor, nn

    from bhive_mltf.ranks.distributed import World

# Set in the process of a rank for the workers of its loader, which may start anew.
VARIABLE = "BHIVE_MLTF_REPLICA"
# Of gradients in one message, as DDP has it.
BUCKET_BYTES = 25 * 2**20
_Rows = TypeVar("_Rows")
_Batch = TypeVar("_Batch")
_Model = TypeVar("_Model")


class Replicas:
    """A process among the ranks that train copies of one model; without a `world` it is the only one.

    rank, size : number of this process from 0, and of all.
    """

    def __init__(self, world: World | None = None, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = (rank, size) if world is None else (world.rank, world.size)
        self._world = world
        self._share = 1.0 / self.size
        self._buckets = Buckets()

    def prepare(self, model: _Model) -> _Model:
        """Make the model one of several equal copies, in place; to be called once it is on its device.

        All get the weights and buffers of rank 0, batch norms use the batch of all ranks, and where backward ends, the
        gradients that it accumulated are averaged over the ranks, weighted by their jets. There is no wrapper: keys of
        the state dict stay, and `forward` may be called directly. Each rank has to use the same parameters in each
        step. What is no torch module is returned as it is.
        """
        from torch import nn

        if self.size > 1 and isinstance(model, nn.Module):
            self._equal(model)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._average)  # type: ignore[no-untyped-call]
        return model

    def even(self, loader: Iterable[_Batch]) -> Iterable[_Batch]:
        """The batches of a loader until the first rank has none left, so that no rank waits for another for ever.

        Raises
        ------
        ParameterError : some ranks, but not all, have no batch at all.
        """
        return loader if self.size == 1 else self._even(loader)

    def mean(self, *values: float, weight: float = 1.0) -> tuple[float, ...]:
        """Means over the ranks of numbers that each rank has; `weight`, such as its jets, is what a rank counts."""
        if self._world is None or self.size == 1:
            return values
        import torch

        own = torch.tensor([*(value * weight for value in values), weight], dtype=torch.float64)
        total = self._world.sum(own)
        return tuple((total[:-1] / total[-1]).tolist())

    def rows(self, array: _Rows) -> _Rows:
        """The rows of an array, [n, ...], that are this rank's: each `size`-th one, from `rank` on."""
        return array if self.size == 1 else array[self.rank :: self.size]  # type: ignore[index]

    def batch_size(self, jets: int) -> int:
        """How many of the `jets` of a global batch are this rank's; ParameterError if they cannot be dealt evenly."""
        if jets % self.size:
            raise ParameterError(
                f"a batch of {jets} jets cannot be dealt evenly to {self.size} ranks: take a multiple of {self.size}"
            )
        return jets // self.size

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._world is not None:
            self._world.barrier()

    def _equal(self, model: nn.Module) -> None:
        import torch
        import torch.distributed as dist

        from bhive_mltf.ranks.batchnorm import synchronise_batch_norms

        assert self._world is not None
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor, 0)
        synchronise_batch_norms(model, self._world.norm_group)

    def _average(self, parameter: Tensor) -> None:
        """Called by backward for each gradient that it has accumulated."""
        from torch.autograd import Variable

        if parameter.grad is not None:
            self._buckets.add(parameter.grad.detach(), self._share)
            # for each gradient, since a backward that failed called nothing; the first call does all
            Variable._execution_engine.queue_callback(lambda: self._buckets.finish(self._share))

    def _even(self, loader: Iterable[_Batch]) -> Iterator[_Batch]:
        import torch

        assert self._world is not None
        first, batches = True, iter(loader)
        while True:
            batch = next(batches, None)
            own = 0 if batch is None else _n_rows(batch)
            jets = self._world.gather(torch.tensor([own], dtype=torch.int64)).flatten()
            ready = int((jets > 0).sum())
            if first and 0 < ready < self.size:
                raise ParameterError(
                    f"the loader has a batch for {ready} of {self.size} ranks only: take at most {ready} ranks, or a "
                    "smaller batch"
                )
            if ready < self.size:
                self._share = 1.0 / self.size
                return
            first, self._share = False, own / int(jets.sum())
            assert batch is not None
            yield batch

    def __getstate__(self) -> dict[str, Any]:
        # process groups stay in their process
        return {**self.__dict__, "_world": None}


class Buckets:
    """Gradients on their way to the sum over the ranks: one message for many of them, as in DDP."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        self._n_bytes: Counter[tuple[torch.dtype, torch.device]] = Counter()
        self._sent: list[tuple[dist.Work, Tensor, list[Tensor]]] = []

    def add(self, gradient: Tensor, share: float) -> None:
        """Take a gradient, which is summed with `share` of this rank; a full bucket is sent."""
        kind = gradient.dtype, gradient.device
        self._waiting.setdefault(kind, []).append(gradient)
        self._n_bytes[kind] += gradient.nbytes
        if self._n_bytes[kind] >= BUCKET_BYTES:
            self._send(kind, share)

    def finish(self, share: float) -> None:
        """Send what waits, and put all sums in place of the gradients."""
        import torch

        while self._waiting:
            self._send(next(iter(self._waiting)), share)
        sent, self._sent = self._sent, []
        for work, flat, gradients in sent:
            work.wait()
            parts = torch.split(flat, [one.numel() for one in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def _send(self, kind: tuple[torch.dtype, torch.device], share: float) -> None:
        import torch
        import torch.distributed as dist

        gradients = self._waiting.pop(kind)
        del self._n_bytes[kind]
        flat = torch.cat([one.reshape(-1) for one in gradients]).mul_(share)
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._sent.append((work, flat, gradients))


def _n_rows(batch: Any) -> int:  # noqa: ANN401 - whatever a loader gives
    """Rows of a batch: those of its first array."""
    first = batch
    while isinstance(first, tuple | list | Mapping) and first:
        first = next(iter(first.values() if isinstance(first, Mapping) else first))
    try:
        return len(first)
    except TypeError:
        return 1


_current: Replicas | None = None


def current() -> Replicas:
    """What this process is to the others; in a worker of a loader, what its rank is."""
    if _current is not None:
        return _current
    rank, _, size = os.environ.get(VARIABLE, "0/1").partition("/")
    return Replicas(rank=int(rank), size=int(size))


def join(world: World) -> Replicas:
    """Make this process one of the ranks of `world`, for as long as it lives."""
    global _current  # noqa: PLW0603 - it is what the process is
    os.environ[VARIABLE] = f"{world.rank}/{world.size}"
    _current = Replicas(world)
    return _current
