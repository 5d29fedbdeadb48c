"""Rows of gpu_check.py: whether numbers are right, and the same again."""

from __future__ import annotations

import copy
import os
import socket
import tempfile
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from gpu_row import CPU, NO_GPU, PART, Found, no_syncs, placed, require, row, step
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bhive_mltf.attacks.attack import pick_attack
from bhive_mltf.attacks.options import AttackOptions
from bhive_mltf.models import layers
from bhive_mltf.ranks.batchnorm import synchronise_batch_norms
from bhive_mltf.training.optim.optimisers import create_optimizer
from bhive_mltf.training.precision import float32_products


@row("EFFICIENT takes a contiguous bias with its gradient: below 1e-2 in half types, 1e-4 in float32, of float64")
def attention(device: torch.device) -> Found:
    worst: dict[str, float] = {}
    half = (torch.bfloat16, torch.float16) if device.type == "cuda" else (torch.bfloat16,)
    for length in (64, 120, 128):
        torch.manual_seed(0)
        q, k, v = (torch.randn(8, 8, length, 16, device=device, dtype=torch.float64) for _ in range(3))
        bias = torch.randn(8, 8, length, length, device=device, dtype=torch.float64)
        kernels = [SDPBackend.EFFICIENT_ATTENTION] if device.type == "cuda" else [SDPBackend.MATH]

        def run(dtype: torch.dtype, kernels: list[SDPBackend], tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
            own = [t.detach().clone().to(dtype).requires_grad_() for t in tensors]
            with sdpa_kernel(kernels):
                out = F.scaled_dot_product_attention(*own)
            out.square().sum().backward()
            return [out.detach(), *(t.grad for t in own if t.grad is not None)]

        for dtype in (torch.float32, *half):
            # of the same numbers: what rounding them costs is not the kernel's
            rounded = tuple(t.to(dtype).double() for t in (q, k, v, bias))
            expected = run(torch.float64, [SDPBackend.MATH], rounded)
            got = run(dtype, kernels, (q, k, v, bias))
            require(len(got) == len(expected), f"{dtype}: the bias has no gradient")
            away = max(float((g.double() - e).norm() / e.norm()) for g, e in zip(got, expected, strict=True))
            name = str(dtype).removeprefix("torch.")
            worst[name] = max(worst.get(name, 0.0), away)
            require(away < (1e-4 if dtype == torch.float32 else 1e-2), f"{name} is {away:.1e} away at {length}")
    return worst


@row("biases as our networks lay them out go to EFFICIENT, the only kernel allowed here: every transformer, all types")
def kernel(device: torch.device) -> Found:
    from tests.helpers.model_factory import CONFIGS, jets, small

    if device.type != "cuda":
        return NO_GPU
    names = [name for name in sorted(CONFIGS) if "Transformer" in name or name.startswith("UParT")]
    with mock.patch.object(layers, "_KERNELS", [SDPBackend.EFFICIENT_ATTENTION]):
        for name in names:
            model = small(name, dropout=0.1).to(device).train()
            batch = placed(model.counted(jets(model, [3, 9, 0, 1, 30])), device)
            for autocast in (None, torch.bfloat16, torch.float16):
                step(model, batch, autocast)
    return {"models": len(names)}


@row("every model, dropout 0, against a CPU in float64: to 1e-9 in float64, in float32 5 times as far as a CPU at most")
def registered(device: torch.device) -> Found:
    from tests.helpers.model_factory import CONFIGS, jets, small

    def found(name: str, where: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        model = small(name).to(where, dtype).train()
        batch = model.counted(jets(model, [3, 9, 0, 1, 30]))
        logits = step(model, placed(batch, where, dtype))
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return logits.cpu().double(), gradient.cpu().double()

    worst: dict[str, float] = {}
    with float32_products():
        for name in sorted(CONFIGS):
            expected = found(name, CPU, torch.float64)
            for dtype in (torch.float64, torch.float32):
                away, of_cpu = (
                    max(float((g - e).norm() / e.norm()) for g, e in zip(got, expected, strict=True))
                    for got in (found(name, device, dtype), found(name, CPU, dtype))
                )
                bound = 1e-9 if dtype == torch.float64 else max(1e-4, 5 * of_cpu)
                require(away < bound, f"{name} in {dtype} is {away:.1e} away, a CPU {of_cpu:.1e}")
                worst[str(dtype)] = max(worst.get(str(dtype), 0.0), away)
    return worst


@row("no step of any model with AdamW or Ranger makes the host wait, no attack on some of them")
def syncs(device: torch.device) -> Found:
    from tests.helpers.model_factory import CONFIGS, jets, small

    names = sorted(CONFIGS) if device.type == "cuda" else [PART, "ParticleNet_InProHLT"]
    for name in names:
        for optimizer_name in ("AdamW", "Ranger"):
            model = small(name, dropout=0.1).to(device).train()
            optimizer = create_optimizer(optimizer_name, model.parameters(), 1e-3)
            batch = placed(model.counted(jets(model, [3, 9, 0, 1, 30])), device)
            for number in range(2):
                with no_syncs(device) if number else no_syncs(CPU):
                    step(model, batch)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
    attacked = (PART, "DeepJet", "ParticleNet_InProHLT") if device.type == "cuda" else (PART,)
    for name in attacked:
        model = small(name).to(device).train()
        batch = placed(model.counted(jets(model, [3, 9, 0, 1, 30])), device)
        for attack in ("pgd", "jetfool", "optimizer"):
            moving = pick_attack(AttackOptions(attack, magnitude=0.1, iterations=2), model, model.inputs)
            for number in range(2):
                with no_syncs(device) if number else no_syncs(CPU):
                    moving(batch)
    return {"models": len(names), "attacked": len(attacked)}


@row("the same bits twice, and cut in the middle, with deterministic algorithms")
def repeats(device: torch.device) -> Found:
    from bhive_mltf.training.reproducibility import deterministic
    from tests.helpers.model_factory import jets, small

    def weights(cut: int | None, autocast: torch.dtype | None) -> torch.Tensor:
        model = small(PART, dropout=0.1).to(device).train()
        optimizer = create_optimizer("AdamW", model.parameters(), 1e-3)
        for number in range(8):
            if number == cut:
                state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
                model = small(PART, dropout=0.1).to(device).train()
                optimizer = create_optimizer("AdamW", model.parameters(), 1e-3)
                model.load_state_dict(state[0])
                optimizer.load_state_dict(state[1])
            torch.manual_seed(number)
            step(model, placed(model.counted(jets(model, [3, 9, 40, 1], seed=number)), device), autocast)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    with deterministic(True):
        for autocast in (None, torch.bfloat16):
            first = weights(None, autocast)
            require(torch.equal(first, weights(None, autocast)), f"two runs differ ({autocast or 'float32'})")
            require(torch.equal(first, weights(4, autocast)), f"a cut run differs ({autocast or 'float32'})")
    return {"steps": 8}


COUNTS = [3, 9, 4, 1, 30]
# of each rank, with the type of the numbers: all jets, and all with one
SHARES = ((torch.float64, ([0, 1, 2], [3, 4])), (torch.bfloat16, ([0, 1, 2, 3, 4], [])))


def gradient_of(rows: list[int], device: torch.device, dtype: torch.dtype, group: Any = None) -> torch.Tensor:
    """Of some of the jets in the loss of all, on the host; half precision by autocast."""
    from tests.helpers.model_factory import jets, small

    double = dtype == torch.float64
    model = small(PART).to(device, dtype if double else None).train()
    synchronise_batch_norms(model, group)
    batch = model.counted(jets(model, COUNTS).map(lambda values: values[rows]))
    batch = placed(batch, device, dtype if double else torch.float32)
    with torch.autocast(device.type, torch.bfloat16, enabled=not double):
        logits = model(batch)
    (F.cross_entropy(logits.double(), batch.target, reduction="sum") / len(COUNTS)).backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters()]).cpu()


def rank_of_two(rank: int, port: int, device: torch.device, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 2, rank == 0, timeout=timedelta(seconds=60))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for number, (dtype, shares) in enumerate(SHARES):
        found = gradient_of(shares[rank], device, dtype, dist.group.WORLD)
        dist.all_reduce(found)
        if rank == 0:
            torch.save(found, f"{folder}/{number}.pt")
    dist.barrier()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@row("two ranks on one device over gloo: gradients of one to 1e-9 in float64; one without jets under bf16: to 0.1")
def two_ranks(device: torch.device) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(rank_of_two, (free_port(), device, folder), 2, start_method="spawn")
        gradients = [torch.load(f"{folder}/{number}.pt") for number in range(len(SHARES))]
    expected = gradient_of(list(range(len(COUNTS))), CPU, torch.float64)
    found = {}
    for (dtype, _), gradient, bound in zip(SHARES, gradients, (1e-9, 0.1), strict=True):
        away = float((gradient - expected).norm() / expected.norm())
        found[str(dtype)] = away
        require(away < bound, f"the gradient in {dtype} is {away:.1e} away")
    return found
