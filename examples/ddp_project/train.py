"""PyTorch DDP on a small problem, and nothing else: the smallest project with ranks that goes on after a time limit.

    bhive-mltf-client submit examples/ddp_project --profile PROFILE --ranks-per-node 4 --resume
    torchrun --nproc-per-node 2 train.py --epochs 3          # the same without a gateway; or `python train.py`

Ranks meet by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which the gateway sets as torchrun does.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

SAVED = 75  # the exit code that asks to be started again
FOLDER = Path(os.environ.get("MLTF_CHECKPOINT_DIR", "ckpt"))


def rings(points: int) -> TensorDataset:
    """Points of two rings in the plane, and to which of them each belongs."""
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 2, (points,), generator=random)
    radius = 1.0 + labels + 0.25 * torch.randn(points, generator=random)
    angle = 2 * torch.pi * torch.rand(points, generator=random)
    return TensorDataset(torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), labels.float())


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Write a checkpoint as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, temporary)
    temporary.replace(path)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on some rank: all of them have to stop at the same place."""
    found = torch.tensor(float(flag), device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())


def train(options: argparse.Namespace, warned: list[int]) -> int:
    """Train from the last checkpoint on; the exit code."""
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    rank, data = dist.get_rank(), rings(4096)
    sampler: DistributedSampler[object] = DistributedSampler(data)
    loader = DataLoader(data, int(options.batch_size), sampler=sampler)
    torch.manual_seed(1)
    bare = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)).to(device)
    model = DistributedDataParallel(bare, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = torch.optim.Adam(model.parameters(), options.rate)
    first, path = 0, FOLDER / "last.pt"
    if path.exists():
        found = torch.load(path, map_location=device, weights_only=True)
        bare.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        first = found["epoch"] + 1
    for epoch in range(first, int(options.epochs)):
        sampler.set_epoch(epoch)
        sums = torch.zeros(3, device=device)
        for batch in loader:
            points, labels = (part.to(device) for part in batch)
            logits = model(points).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right = ((logits > 0) == (labels > 0.5)).sum()
            sums += torch.stack([loss.detach() * len(labels), right, torch.tensor(len(labels), device=device)])
        dist.all_reduce(sums)
        loss, accuracy = (sums[:2] / sums[2]).tolist()
        if rank == 0:
            report(epoch, {"loss": loss, "accuracy": accuracy})
            save(path, bare, optimizer, epoch)
        time.sleep(options.pause)
        if any_rank(bool(warned), device) and epoch + 1 < int(options.epochs):
            return SAVED
    return 0


def report(epoch: int, values: dict[str, float]) -> None:
    """Tell log and, where there is one, tracking server."""
    print(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()), flush=True)  # noqa: T201
    if "MLFLOW_TRACKING_URI" in os.environ:
        import mlflow

        mlflow.log_metrics(values, step=epoch)


def tracked(rank: int) -> contextlib.AbstractContextManager[object]:
    """The run of the job, which `MLFLOW_RUN_ID` names; rank 0 alone writes to it."""
    if rank != 0 or "MLFLOW_TRACKING_URI" not in os.environ:
        return contextlib.nullcontext()
    import mlflow

    return mlflow.start_run()


def main() -> int:
    """Join the other ranks and train; the exit code."""
    parser = argparse.ArgumentParser(description="Two rings in the plane.")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--batch-size", type=float, default=256)
    parser.add_argument("--pause", type=float, default=0, help="seconds after each epoch")
    options = parser.parse_args()
    # a handler only notes the warning, which comes more than once
    warned: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, _: warned.append(number))
    for name, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29500,
    }.items():
        os.environ.setdefault(name, str(value))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        with tracked(dist.get_rank()):
            return train(options, warned)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
