"""What a training step of the paper's ParT moves, computes and sends, counted operator by operator; nothing is timed.

    python benchmarks/bench_cost.py --data DIR [--jets 64 256 1024]

DIR is a folder of JetClass files. Forward and backward in float32, with the operators of a CPU, with those of a GPU
(torch's `meta` device; `gpu8`: with eight groups of jets, which a GPU has from 1024 jets on, since each group costs
launches), and of the padded reference. The last line is one JSON object:

mb_per_jet, gflop_per_jet, kernels : by kind and number of jets.
messages_per_norm : of a batch norm of several ranks, forward and backward together.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from bench_train import make_plan
from common import conditions, jetclass_files
from part import MODEL
from torch import Tensor, nn
from torch.nn import functional as F
from turns import take_batches

from bhive_mltf import config as configs
from bhive_mltf.data.ntuples.root_dataset import open_root
from bhive_mltf.interface import Batch
from bhive_mltf.models import layout, registry
from bhive_mltf.ranks.batchnorm import synchronise_batch_norms
from bhive_mltf.training.scaling.limits import Cost, Traced

META = torch.device("meta")


def cost_of(forward: Callable[[Batch], Tensor], batch: Batch) -> tuple[Cost, Traced]:
    traced = Traced()
    with traced.over(len(batch)):
        F.cross_entropy(forward(batch), batch.target).backward()
    return traced.cost(), traced


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rate: float) -> Tensor:
    """The operator that CUDA takes, which `meta` does not choose by itself."""
    whole = bias.expand(*q.shape[:3], k.shape[2])
    found: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, whole, True, rate)[0]
    return found


def costs(batch: Batch, config: configs.Config) -> dict[str, Cost]:
    model = registry.create(MODEL, config).train()
    batch = model.counted(batch)
    found = {"cpu": cost_of(model, batch)[0], "padded": cost_of(model.padded, batch)[0]}
    model.to(META)
    placed = batch.map(lambda values: values.to(META))
    # `meta` has no autocast, which is off
    no_autocast = mock.patch.object(torch, "autocast", return_value=nullcontext())
    with no_autocast, mock.patch("bhive_mltf.models.layers.attend", fused_attention):
        found["gpu"] = cost_of(model, placed)[0]
        with mock.patch.object(layout, "JETS_PER_GROUP", 1):
            found["gpu8"] = cost_of(model, placed)[0]
    return found


def messages_per_norm(batch: Batch, config: configs.Config) -> float:
    """Of a group of one rank, which sends what one of several does."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = registry.create(MODEL, config).train()
    norms = sum(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    synchronise_batch_norms(model, dist.group.WORLD)
    _, traced = cost_of(model, model.counted(batch))
    dist.destroy_process_group()
    return sum(traced.calls(name) for name in ("allreduce_", "allgather_", "_allgather_base_", "broadcast_")) / norms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--jets", type=int, nargs="+", default=[64, 256, 1024])
    options = parser.parse_args()
    logging.getLogger("bhive_mltf").setLevel(logging.ERROR)
    files, config = jetclass_files(options.data), configs.load("jet_class")
    conditions(files)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, open_root(config, files, seed=1):
        for n_jets in options.jets:
            (batch,) = take_batches(make_plan(Path(folder), files, config, MODEL, batch_size=n_jets), 1)
            for kind, cost in costs(batch, config).items():
                row = {"mb_per_jet": cost.bytes / 1e6, "gflop_per_jet": cost.flops / 1e9, "kernels": cost.kernels}
                print(f"{n_jets:>5} jets, {kind:<7}", ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
                figures |= {f"{name}_{kind}_{n_jets}": value for name, value in row.items()}
        figures["messages_per_norm"] = messages_per_norm(batch, config)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
