"""What to run first on a GPU: predictions beside measurements, a verdict per row, one JSON file.

    make gpu-check [ONLY=attention,speed]
    python benchmarks/gpu_check.py [--only ROW,ROW] [--device cuda] [--json FILE]

Without a GPU the same rows run on the CPU as far as they can, smaller, so that the script does not rot. Rows import
neither law nor mlflow. A row that fails does not stop the others; the exit code says whether one did.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bhive_mltf.errors import nearest
from bhive_mltf.interface import Batch
from bhive_mltf.models.base import Tagger
from bhive_mltf.training.optim.optimisers import create_optimizer
from bhive_mltf.training.precision import float32_products

JSON = Path("gpu_check.json")
PART = "ParticleTransformer_JetClass"
Found = dict[str, Any]
Row = Callable[[torch.device], Found]
ROWS: dict[str, tuple[str, Row]] = {}
# kjets/s of the paper's ParT, forward, backward and update, by card and precision: estimates of +-40 %
PREDICTED = {
    "H200": {"float32": 60, "tf32": 80, "bf16": 105},
    "A6000": {"float32": 9, "tf32": 12, "bf16": 17},
}


class FailedError(Exception):
    """What was found is not what a row asks for."""


def row(expectation: str) -> Callable[[Row], Row]:
    def add(function: Row) -> Row:
        ROWS[function.__name__] = expectation, function
        return function

    return add


def require(holds: bool, found: str) -> None:
    if not holds:
        raise FailedError(found)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], object], device: torch.device, repeat: int) -> float:
    function()
    synchronise(device)
    started = time.perf_counter()
    for _ in range(repeat):
        function()
    synchronise(device)
    return (time.perf_counter() - started) / repeat


def jets_of(model: Tagger, n_jets: int, mean: int = 50) -> Batch:
    """Random jets of 1 to 128 candidates, on the host."""
    from tests.helpers.model_factory import jets

    generator = torch.Generator().manual_seed(1)
    spread = torch.randn(n_jets, generator=generator) * 0.35 * mean + mean
    return model.counted(jets(model, spread.round().clamp(1, 128).int().tolist()))


def placed(batch: Batch, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
    return batch.map(lambda values: values.to(device, dtype if values.is_floating_point() else values.dtype))


def step(model: Tagger, batch: Batch, autocast: torch.dtype | None = None) -> torch.Tensor:
    with torch.autocast(batch.target.device.type, autocast, enabled=autocast is not None):
        output = model(batch)
    logits = output.logits if model.regression else output
    loss = F.cross_entropy(logits.float() if autocast else logits, batch.target)
    loss.backward()
    return logits.detach()


@contextmanager
def no_syncs(device: torch.device) -> Iterator[None]:
    """An error where the host waits for the GPU."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@row("copy about 4.3 TB/s, bf16 product about 790 TFLOP/s on an H200; 0.7 and 150 on an A6000")
def versions(device: torch.device) -> Found:
    size = 2**28 if device.type == "cuda" else 2**22
    side = 8192 if device.type == "cuda" else 512
    a = torch.empty(size, device=device)
    b = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return {
        "copy_tb_per_s": 2 * 4 * size / seconds_of(a.clone, device, 5) / 1e12,
        "bf16_tflop_per_s": 2 * side**3 / seconds_of(lambda: b @ b, device, 5) / 1e12,
    }


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

        expected = run(torch.float64, [SDPBackend.MATH], (q, k, v, bias))
        for dtype in (torch.float32, *half):
            got = run(dtype, kernels, (q, k, v, bias))
            require(len(got) == len(expected), f"{dtype}: the bias has no gradient")
            away = max(float((g.double() - e).norm() / e.norm()) for g, e in zip(got, expected, strict=True))
            name = str(dtype).removeprefix("torch.")
            worst[name] = max(worst.get(name, 0.0), away)
            require(away < (1e-4 if dtype == torch.float32 else 1e-2), f"{name} is {away:.1e} away at {length}")
    return worst


@row("every model, dropout 0, against the CPU in float64: logits and gradients to 1e-9 in float64, 1e-3 in float32")
def registered(device: torch.device) -> Found:
    from tests.helpers.model_factory import CONFIGS, jets, small

    worst = {}
    for name in sorted(CONFIGS):
        reference = small(name).double().train()
        batch = reference.counted(jets(reference, [3, 9, 0, 1, 30]))
        expected = step(reference, placed(batch, torch.device("cpu"), torch.float64))
        of_reference = torch.cat([p.grad.flatten() for p in reference.parameters()])
        for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
            model = small(name).to(device, dtype).train()
            logits = step(model, placed(batch, device, dtype)).cpu().double()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).cpu().double()
            pairs = ((logits, expected), (gradient, of_reference))
            away = max(float((got - want).norm() / want.norm()) for got, want in pairs)
            require(away < bound, f"{name} in {dtype} is {away:.1e} away")
            worst[str(dtype)] = max(worst.get(str(dtype), 0.0), away)
    return worst


@row("no step of any model with AdamW or Ranger makes the host wait")
def syncs(device: torch.device) -> Found:
    from tests.helpers.model_factory import CONFIGS, jets, small

    names = sorted(CONFIGS) if device.type == "cuda" else [PART, "ParticleNet_InProHLT"]
    for name in names:
        for optimizer_name in ("AdamW", "Ranger"):
            model = small(name, dropout=0.1).to(device).train()
            optimizer = create_optimizer(optimizer_name, model.parameters(), 1e-3)
            batch = placed(model.counted(jets(model, [3, 9, 0, 1, 30])), device)
            for number in range(2):
                with no_syncs(device) if number else no_syncs(torch.device("cpu")):
                    step(model, batch)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
    return {"models": len(names)}


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


@row("with the guard a gradient that is not finite spares weights and optimiser")
def guard(device: torch.device) -> Found:
    from bhive_mltf.training.optim.skip_nonfinite_update import Guard

    model = torch.nn.Linear(4, 4).to(device)
    optimizer = create_optimizer("AdamW", model.parameters(), 1e-3)
    keeper = Guard(optimizer, device)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    keeper.step(torch.tensor(float("nan"), device=device))
    require(all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)), "the weights moved")
    return {}


@row("compiled: nothing compiled anew after the first shapes")
def compiled(device: torch.device) -> Found:
    from torch._dynamo.utils import counters

    from tests.helpers.model_factory import jets, small

    model = small(PART).to(device).train()
    model.compile_rows("default")
    # a CPU would compile C++ for minutes, which tests/training/test_compile.py does: here it only traces
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    seen = []
    with mock.patch("torch.compile", partial(torch.compile, backend=backend)):
        for number, counts in enumerate([[3, 9, 4], [7, 5, 12, 2], [6, 8], [11, 2, 3, 4, 5, 21]] * 5):
            step(model, placed(model.counted(jets(model, counts, seed=number)), device))
            seen.append(counters["stats"]["unique_graphs"])
    require(len(set(seen[4:])) == 1, f"graphs by step: {seen}")
    return {"backend": backend, "graphs": seen[-1]}


@row("ParT of the paper, kjets/s and GB by batch and precision; see `predicted`")
def speed(device: torch.device) -> Found:
    from bhive_mltf import config as configs
    from bhive_mltf.models import registry

    on_gpu = device.type == "cuda"
    found: Found = {}
    card = torch.cuda.get_device_name(device) if on_gpu else ""
    found["predicted"] = next((rates for name, rates in PREDICTED.items() if name in card), {})
    for n_jets in (512, 1024, 2048) if on_gpu else (32,):
        for name, tf32, autocast in (("float32", False, None), ("tf32", True, None), ("bf16", False, torch.bfloat16)):
            model = registry.create(PART, configs.load("jet_class")).to(device).train()
            optimizer = create_optimizer("AdamW", model.parameters(), 1e-3)
            batch = placed(jets_of(model, n_jets), device)

            def once(model: Tagger = model, batch: Batch = batch, kind: Any = autocast, own: Any = optimizer) -> None:
                step(model, batch, kind)
                own.step()
                own.zero_grad(set_to_none=True)

            if on_gpu:
                torch.cuda.reset_peak_memory_stats(device)
            with float32_products(tf32=tf32):
                seconds = seconds_of(once, device, 10 if on_gpu else 1)
            found[f"{name}_{n_jets}_kjets_per_s"] = n_jets / seconds / 1e3
            if on_gpu:
                found[f"{name}_{n_jets}_peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found


@row("memory that is not there is torch's OutOfMemoryError, which the engine tells with the size of the batch")
def memory(device: torch.device) -> Found:
    if device.type != "cuda":
        return {}
    try:
        torch.empty(2**42, device=device)
    except torch.OutOfMemoryError:
        return {}
    raise FailedError("4 TB were allocated, or the error is of another kind")


def conditions(device: torch.device) -> Found:
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "card": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="all", help=f"rows, of {', '.join(ROWS)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=JSON)
    options = parser.parse_args()
    names = list(ROWS) if options.only in ("", "all") else options.only.split(",")
    for name in names:
        if name not in ROWS:
            raise SystemExit(f"there is no row '{name}' (nearest: {nearest(name, ROWS, 1)[0]}): take {', '.join(ROWS)}")
    device = torch.device(options.device)
    rows = []
    for name in names:
        expectation, function = ROWS[name]
        started = time.perf_counter()
        found: Found = {}
        try:
            found, verdict = function(device), "ok"
        except FailedError as error:
            verdict = f"FAILED: {error}"
        except Exception as error:  # noqa: BLE001 - the other rows are wanted too
            verdict = f"FAILED: {type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        rows.append({"name": name, "expected": expectation, "found": found, "verdict": verdict, "seconds": seconds})
        print(f"{name:<12}{verdict}  ({seconds:.0f} s)\n  expected: {expectation}\n  found:    {found}", flush=True)
    options.json.write_text(json.dumps({"conditions": conditions(device), "rows": rows}, indent=2) + "\n")
    return int(any(one["verdict"] != "ok" for one in rows))


if __name__ == "__main__":
    raise SystemExit(main())
